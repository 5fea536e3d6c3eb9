#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "client/cli/answer.h"
#include "client/cli/chat_flags.h"
#include "client/cli/commands.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct AskFlags {
  AnswerFlags answer;
  std::optional<std::string> prompt;
  ChatFlags chat;
  std::vector<std::string> choices;
  std::string request_id;
};

std::string PromptFromStdin(const Terminal& terminal) {
  if (terminal.stdin_is_terminal) std::cerr << "Type the prompt, then Ctrl-D:\n";
  std::string prompt{std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
  // The newline that ends a text file or an echo is not meant for the model.
  if (absl::EndsWith(prompt, "\n")) prompt.pop_back();
  return prompt;
}

absl::Status Ask(Session& session, const AskFlags& flags) {
  const std::string prompt = flags.prompt && *flags.prompt != "-" ? *flags.prompt : PromptFromStdin(session.terminal);
  // Usually the prompt stood behind the choices, and is one of them now.
  if (prompt.empty() && !flags.prompt && !flags.choices.empty()) {
    return absl::InvalidArgumentError(
        "prompt: is missing; --choices takes every text behind it, so write the prompt before it");
  }
  v1::GenerateRequest request;
  if (flags.chat.wanted()) {
    C3PO_RETURN_IF_ERROR(FillChat(flags.chat, prompt, *request.mutable_chat()));
  } else {
    request.set_prompt(prompt);
  }
  for (const std::string& choice : flags.choices) request.add_choices(choice);
  if (!flags.request_id.empty()) request.set_request_id(flags.request_id);
  return StreamAnswer(session, flags.answer, std::move(request));
}

}  // namespace

void AddAskCommand(CLI::App& app, Session* session) {
  CLI::App* command = app.add_subcommand("ask", "Ask one question and stream the answer");
  const auto flags = std::make_shared<AskFlags>();
  command->add_option("prompt", flags->prompt, "The prompt; without it, or with -, it is read from stdin");
  AddChatFlags(*command, &flags->chat);
  command->add_option("--choices", flags->choices,
                      "Answer with one of these, the likeliest per token; each with the space before it, if any");
  command->add_option("--request-id", flags->request_id, "Name of the request in the server's logs");
  AddAnswerFlags(*command, &flags->answer);
  const auto set_answers = [flags](uint32_t count) { flags->answer.sampling.set_n(count); };
  command->add_option_function<uint32_t>("--answers", set_answers,
                                         "Answers to the one prompt; over 1 needs a --temperature above 0");
  command->callback([session, flags] { session->command = [flags](Session& chosen) { return Ask(chosen, *flags); }; });
}

}  // namespace c3po
