#ifndef C3PO_SERVER_GRAMMAR_FORM_PROCESS_H_
#define C3PO_SERVER_GRAMMAR_FORM_PROCESS_H_

// What the process that compiles forms (FormCompiler) is told, and what it says, over two pipes. Each message is its
// length and its body (byte_fields.h):
//   vocabulary (BytesOf) ▶        ◀ FormReply, kCompiled and empty: ready
//   form (BytesOf)       ▶        ◀ FormReply                           and so on, until the pipe ends

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/types/answer_form.h"

namespace c3po {

// A program that holds FormCompiler runs RunFormProcess, and nothing else, where this is its only argument.
inline constexpr char kFormProcessArgument[] = "--compile-forms";

// Reads standard input and writes standard output until that ends; then the process's exit code.
int RunFormProcess();

struct FormReply {
  enum class Kind : char { kCompiled = 'c', kRefused = 'r', kNoMemory = 'm' };
  Kind kind = Kind::kCompiled;
  std::string text;  // The compiled form's bytes (FormEngine::FromBytes); the refusal's message.
};

std::string BytesOf(const AnswerForm& form);
// InvalidArgument: not such bytes.
absl::StatusOr<AnswerForm> FormFromBytes(absl::string_view bytes);
absl::StatusOr<FormReply> ParseFormReply(absl::string_view body);

}  // namespace c3po

#endif  // C3PO_SERVER_GRAMMAR_FORM_PROCESS_H_
