#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "client/cli/answer.h"
#include "client/cli/commands.h"

namespace c3po {
namespace {

struct ChatFlags {
  AnswerFlags answer;
  std::optional<std::string> system;
};

void AddMessage(v1::Chat* chat, const std::string& role, const std::string& content) {
  v1::ChatMessage& message = *chat->add_messages();
  message.set_role(role);
  message.set_content(content);
}

// One turn per line of stdin. On a terminal a failed or interrupted turn is told and forgotten; in a script it ends the
// command, as an answer that the next turns build on is missing.
absl::Status Chat(Session& session, const ChatFlags& flags) {
  const bool interactive = session.terminal.stdin_is_terminal;
  v1::GenerateRequest request;
  if (flags.system) AddMessage(request.mutable_chat(), "system", *flags.system);
  if (interactive) std::cerr << "One turn per line; /quit or Ctrl-D ends.\n";
  std::string line;
  while (true) {
    if (interactive) std::cerr << session.terminal.Bold("> ");
    if (!std::getline(std::cin, line) || line == "/quit") return absl::OkStatus();
    if (line.empty()) continue;
    AddMessage(request.mutable_chat(), "user", line);
    std::string answer;
    const absl::Status status = StreamAnswer(session, flags.answer, request, &answer);
    if (status.ok()) {
      AddMessage(request.mutable_chat(), "assistant", answer);
      continue;
    }
    if (!interactive) return status;
    std::cerr << "c3po: " << status << "\n";
    request.mutable_chat()->mutable_messages()->RemoveLast();
    session.cancellation.Reset();
  }
}

}  // namespace

void AddChatCommand(CLI::App& app, Session* session) {
  CLI::App* command = app.add_subcommand("chat", "Talk turn by turn: each line of stdin is a message");
  const auto flags = std::make_shared<ChatFlags>();
  command->add_option("--system", flags->system, "System message");
  AddAnswerFlags(*command, &flags->answer);
  command->callback([session, flags] { session->command = [flags](Session& chosen) { return Chat(chosen, *flags); }; });
}

}  // namespace c3po
