#ifndef C3PO_SERVER_TEXT_CHAT_TEMPLATE_H_
#define C3PO_SERVER_TEXT_CHAT_TEMPLATE_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// What a Jinja chat template (https://jinja.palletsprojects.com, rendered by transformers with trim_blocks and
// lstrip_blocks) can write for a conversation of system, user and assistant turns that asks for the assistant's next
// turn. Branches on what such a request never has (tools, documents, other roles, reasoning fields) are dropped;
// spelling that does not matter (kinds of quotes, m.role for m['role'], the loop variable's name, white space control,
// 'a' + 'b' for 'ab', outputs in a row) is made one. Nothing is executed. A value.
struct ChatTemplate {
  // All expressions written out, in the order of the text, canonical: 'x'+message['content']+'y'. Each distinct one
  // once; raise_exception is left out.
  std::vector<std::string> outputs;
  // Conditions that a conversation decides, canonical.
  std::vector<std::string> conditions;
  // A variable's assignments that can be reached: "name" and the terms of the sum assigned, in order.
  struct Term {
    bool is_text;      // A string literal,
    std::string text;  // unescaped; else the canonical expression.
  };
  struct Assignment {
    std::string name;
    std::vector<Term> sum;
  };
  std::vector<Assignment> assignments;

  // InvalidArgument: no well-formed template (an unfinished tag or string, an end without its start).
  static absl::StatusOr<ChatTemplate> Parse(absl::string_view source);
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_CHAT_TEMPLATE_H_
