#include "server/text/pattern_field.h"

#include <optional>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::StatusOr<Regex> ReadPattern(const JsonField& stage) {
  C3PO_ASSIGN_OR_RETURN(const JsonField pattern, stage.Member("pattern"));
  const bool literal = pattern.Find("String").has_value();
  C3PO_ASSIGN_OR_RETURN(const JsonField source, pattern.Member(literal ? "String" : "Regex"));
  C3PO_ASSIGN_OR_RETURN(const std::string text, source.AsString());
  absl::StatusOr<Regex> regex = literal ? Regex::Literal(text) : Regex::Compile(text);
  if (!regex.ok()) return source.Error(regex.status().message());
  return regex;
}

absl::StatusOr<std::string> ReplaceAll(const Regex& pattern, absl::string_view content, absl::string_view text) {
  C3PO_ASSIGN_OR_RETURN(const std::vector<TextRange> matches, pattern.FindAll(text));
  std::string replaced;
  replaced.reserve(text.size());
  size_t copied = 0;
  for (const TextRange& match : matches) {
    absl::StrAppend(&replaced, text.substr(copied, match.begin - copied), content);
    copied = match.end;
  }
  absl::StrAppend(&replaced, text.substr(copied));
  return replaced;
}

}  // namespace c3po
