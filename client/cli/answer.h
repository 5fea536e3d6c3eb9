#ifndef C3PO_CLIENT_CLI_ANSWER_H_
#define C3PO_CLIENT_CLI_ANSWER_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "c3po/v1/generation.pb.h"
#include "client/cli/session.h"

namespace c3po {

// What `ask` and `chat` share: the request's options and how the answer is shown.
struct AnswerFlags {
  v1::SamplingOptions sampling;
  v1::OptimizationOptions optimization;
  v1::StructuredOutput form;
  bool json = false;
  bool explain = false;
  bool show_experts = false;
  std::optional<uint32_t> experts_per_token;
};

void AddAnswerFlags(CLI::App& command, AnswerFlags* flags);

// Sends the request with the flags' options and shows the answer as it comes: its text, or with `json` one JSON
// document per event. *answer, if not null, receives the text.
absl::Status StreamAnswer(Session& session, const AnswerFlags& flags, v1::GenerateRequest request,
                          std::string* answer = nullptr);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_ANSWER_H_
