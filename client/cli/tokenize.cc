#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/cli/json_output.h"
#include "client/cli/terminal.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct TokenizeFlags {
  std::optional<std::string> text;
  std::vector<uint32_t> ids;
  bool no_special = false;
  bool json = false;
};

absl::Status Tokenize(Session& session, const TokenizeFlags& flags) {
  v1::TokenizeRequest request;
  request.set_text(*flags.text);
  if (flags.no_special) request.set_add_special_tokens(false);
  C3PO_ASSIGN_OR_RETURN(const v1::TokenizeResponse response, session.client->Tokenize(request, session.call_options()));
  if (flags.json) return PrintJsonLine(response);
  Table table("rl");
  table.AddRow({"id", "piece"});
  for (int i = 0; i < response.ids_size(); ++i) {
    table.AddRow({absl::StrCat(response.ids(i)), i < response.pieces_size() ? Snippet(response.pieces(i), 60) : ""});
  }
  absl::PrintF("%s%d tokens\n", table.Render(session.terminal), response.ids_size());
  return absl::OkStatus();
}

absl::Status Detokenize(Session& session, const TokenizeFlags& flags) {
  v1::DetokenizeRequest request;
  for (const uint32_t id : flags.ids) request.add_ids(id);
  if (flags.no_special) request.set_skip_special_tokens(true);
  C3PO_ASSIGN_OR_RETURN(const v1::DetokenizeResponse response,
                        session.client->Detokenize(request, session.call_options()));
  if (flags.json) return PrintJsonLine(response);
  absl::PrintF("%s\n", session.terminal.stdout_is_terminal ? WithoutControls(response.text()) : response.text());
  return absl::OkStatus();
}

}  // namespace

void AddTokenizeCommand(CLI::App& app, Session* session) {
  CLI::App* command = app.add_subcommand("tokenize", "Token ids of a text, or with --ids the text of token ids");
  const auto flags = std::make_shared<TokenizeFlags>();
  CLI::Option* text = command->add_option("text", flags->text, "The text");
  command->add_option("--ids", flags->ids, "Token ids, separated by commas")->delimiter(',')->excludes(text);
  command->add_flag("--no-special", flags->no_special, "Without special tokens");
  command->add_flag("--json", flags->json, "Print the answer as JSON");
  command->callback([session, flags] {
    if (!flags->text && flags->ids.empty()) throw CLI::RequiredError("a text or --ids");
    session->command = [flags](Session& chosen) {
      return flags->text ? Tokenize(chosen, *flags) : Detokenize(chosen, *flags);
    };
  });
}

}  // namespace c3po
