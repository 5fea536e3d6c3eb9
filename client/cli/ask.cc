#include <iostream>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "client/cli/answer.h"
#include "client/cli/commands.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int64_t kJsonBytesMax = int64_t{1} << 20;

struct AskFlags {
  AnswerFlags answer;
  std::optional<std::string> prompt;
  bool chat = false;
  std::optional<std::string> system;
  std::vector<std::string> tools, documents;  // Files of one JSON object each.
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

// The files' texts as they are: the server says which of them is no JSON object.
absl::Status ReadFiles(const std::vector<std::string>& paths, google::protobuf::RepeatedPtrField<std::string>* texts) {
  for (const std::string& path : paths) {
    C3PO_ASSIGN_OR_RETURN(*texts->Add(), ReadWholeFile(path, kJsonBytesMax));
  }
  return absl::OkStatus();
}

absl::Status FillChat(const AskFlags& flags, const std::string& prompt, v1::Chat& chat) {
  if (flags.system) {
    v1::ChatMessage& message = *chat.add_messages();
    message.set_role("system");
    message.set_content(*flags.system);
  }
  v1::ChatMessage& message = *chat.add_messages();
  message.set_role("user");
  message.set_content(prompt);
  C3PO_RETURN_IF_ERROR(ReadFiles(flags.tools, chat.mutable_tools_json()));
  return ReadFiles(flags.documents, chat.mutable_documents_json());
}

absl::Status Ask(Session& session, const AskFlags& flags) {
  const std::string prompt = flags.prompt && *flags.prompt != "-" ? *flags.prompt : PromptFromStdin(session.terminal);
  // Usually the prompt stood behind the choices, and is one of them now.
  if (prompt.empty() && !flags.prompt && !flags.choices.empty()) {
    return absl::InvalidArgumentError(
        "prompt: is missing; --choices takes every text behind it, so write the prompt before it");
  }
  v1::GenerateRequest request;
  if (flags.chat || flags.system || !flags.tools.empty() || !flags.documents.empty()) {
    C3PO_RETURN_IF_ERROR(FillChat(flags, prompt, *request.mutable_chat()));
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
  command->add_flag("--chat", flags->chat, "Send the prompt as a user's chat message");
  command->add_option("--system", flags->system, "System message; implies --chat");
  command
      ->add_option(
          "--tool", flags->tools,
          "File of a tool that the chat template tells the model, a JSON object; may be repeated; implies --chat")
      ->expected(1)
      ->take_all();
  command->add_option("--document", flags->documents, "File of a document, likewise")->expected(1)->take_all();
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
