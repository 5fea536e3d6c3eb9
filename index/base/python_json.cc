#include "index/base/python_json.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace c3po {

std::string QuoteNonFinite(absl::string_view json) {
  std::string quoted;
  quoted.reserve(json.size());
  bool in_string = false;
  for (size_t i = 0; i < json.size(); ++i) {
    absl::string_view number;
    if (!in_string) {
      for (const absl::string_view candidate : {"NaN", "Infinity", "-Infinity"}) {
        if (absl::StartsWith(json.substr(i), candidate)) number = candidate;
      }
    }
    if (!number.empty()) {
      absl::StrAppend(&quoted, "\"", number, "\"");
      i += number.size() - 1;
      continue;
    }
    if (json[i] == '"') in_string = !in_string;
    quoted.push_back(json[i]);
    if (in_string && json[i] == '\\' && i + 1 < json.size()) quoted.push_back(json[++i]);
  }
  return quoted;
}

}  // namespace c3po
