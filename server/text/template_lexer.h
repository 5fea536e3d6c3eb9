#ifndef C3PO_SERVER_TEXT_TEMPLATE_LEXER_H_
#define C3PO_SERVER_TEXT_TEMPLATE_LEXER_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// The words of a Jinja template (https://jinja.palletsprojects.com), for chat_template.h. Pure functions.

struct TemplateToken {
  enum class Kind { kName, kString, kOther };  // Numbers are names.
  Kind kind;
  std::string text;  // A string's is unescaped.

  bool Is(absl::string_view word) const { return kind != Kind::kString && text == word; }
};
using TemplateTokens = std::vector<TemplateToken>;

struct TemplateTag {
  bool is_output;  // {{ }}, or text between tags as a string, else {% %}. Comments are dropped.
  TemplateTokens tokens;
};

// The tags of `source`, with white space around them as Jinja leaves it under trim_blocks and lstrip_blocks.
// InvalidArgument: a tag, comment or string without end.
absl::StatusOr<std::vector<TemplateTag>> ReadTemplateTags(absl::string_view source);

// a.b as a['b'], unless it is called; literals that are added, as one.
TemplateTokens SimplifyTokens(const TemplateTokens& tokens);

// One spelling: strings between single quotes, unescaped; blanks only where words need them.
std::string CanonicalText(const TemplateTokens& tokens);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_TEMPLATE_LEXER_H_
