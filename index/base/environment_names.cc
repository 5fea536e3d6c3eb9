#include "index/base/environment_names.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "index/base/nearest_name.h"

namespace c3po {
namespace {

constexpr absl::string_view kPrefix = "C3PO_";

bool IsServiceLink(absl::string_view name, absl::string_view value) {
  return absl::StrContains(name, "_SERVICE_HOST") || absl::StrContains(name, "_SERVICE_PORT") ||
         absl::StrContains(name, "_TCP") || absl::StrContains(name, "_UDP") || absl::StartsWith(value, "tcp://") ||
         absl::StartsWith(value, "udp://");
}

}  // namespace

const std::vector<std::string>& ClientVariables() {
  static const auto& names =
      *new std::vector<std::string>{"C3PO_CACHE_DIR", "C3PO_SERVER",  "C3PO_TOKEN",         "C3PO_TLS_CA",
                                    "C3PO_TLS_CERT",  "C3PO_TLS_KEY", "C3PO_INSECURE_TOKEN"};
  return names;
}

std::vector<std::string> VariablesSet() {
  std::vector<std::string> names;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::pair<absl::string_view, absl::string_view> variable = absl::StrSplit(*entry, absl::MaxSplits('=', 1));
    if (absl::StartsWith(variable.first, kPrefix) && !IsServiceLink(variable.first, variable.second))
      names.emplace_back(variable.first);
  }
  std::sort(names.begin(), names.end());
  return names;
}

std::vector<std::string> MisspelledClientVariables() {
  const std::vector<std::string>& known = ClientVariables();
  std::vector<std::string> endings, lines;
  for (const std::string& name : known) endings.push_back(name.substr(kPrefix.size()));
  for (const std::string& name : VariablesSet()) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    const std::string nearest = NearestName(absl::string_view(name).substr(kPrefix.size()), endings);
    if (nearest.empty()) continue;
    lines.push_back(absl::StrCat(name, " is set, and nothing reads it here; did you mean ", kPrefix, nearest, "?"));
  }
  return lines;
}

}  // namespace c3po
