#include <google/protobuf/text_format.h>

#include <map>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "client/cli/commands.h"
#include "client/cli/json_output.h"
#include "client/cli/terminal.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct InfoFlags {
  double wait_seconds = 0;
  bool json = false;
};

Table ModelTable(const v1::GetServerInfoResponse& info) {
  const v1::ModelInfo& model = info.model();
  Table table("ll");
  table.AddRow(
      {"server", absl::StrCat(info.version(), ", up ",
                              absl::FormatDuration(absl::Seconds(static_cast<int64_t>(info.uptime_seconds()))))});
  table.AddRow({"model", absl::StrCat(model.name(), " (", model.architecture(), ", ", model.dtype(), " on ",
                                      model.device(), ")")});
  if (!model.weights().empty()) table.AddRow({"weights", model.weights()});  // Of an older server there are none.
  table.AddRow({"arithmetic", model.arithmetic()});
  if (!model.kv_cache_dtype().empty()) table.AddRow({"KV cache", model.kv_cache_dtype()});
  table.AddRow({"digest", model.digest()});
  table.AddRow({"parameters", absl::StrFormat("%.1f million", static_cast<double>(model.parameters()) / 1e6)});
  table.AddRow({"layers", absl::StrCat(model.layers(), ", ", model.moe_layers(), " of them with ", model.experts(),
                                       " experts, ", model.experts_per_token(), " active per token")});
  table.AddRow({"hidden size", absl::StrCat(model.hidden_size())});
  table.AddRow({"vocabulary", absl::StrCat(model.vocabulary_size())});
  table.AddRow({"context", absl::StrCat(model.context_window(), " tokens")});
  table.AddRow({"chat", model.chat() ? "yes" : "no"});
  for (const std::string& warning : info.warnings()) table.AddRow({"warning", WithoutControls(warning)});
  table.AddRow({"embedder", absl::StrCat(info.embedder().name(), " (", info.embedder().dimension(), " dimensions)")});
  return table;
}

// The fields that a request gets which does not set them, as the .proto names them.
Table DefaultsTable(const v1::OptimizationOptions& defaults) {
  google::protobuf::TextFormat::Printer printer;
  printer.SetUseShortRepeatedPrimitives(true);
  std::string text;
  printer.PrintToString(defaults, &text);
  Table table("l");
  table.AddRow({"C3PO options by default"});
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    table.AddRow({absl::StrCat("  ", line)});
  }
  return table;
}

Table LimitsTable(const v1::GetServerInfoResponse& info) {
  Table table("lr");
  table.AddRow({"limit", "value"});
  const std::map<std::string, uint64_t> sorted(info.limits().begin(), info.limits().end());
  for (const auto& [name, value] : sorted) table.AddRow({name, absl::StrCat(value)});
  return table;
}

absl::Status Info(Session& session, const InfoFlags& flags) {
  if (flags.wait_seconds > 0) {
    C3PO_RETURN_IF_ERROR(session.client->WaitUntilServing(absl::Seconds(flags.wait_seconds), &session.cancellation));
  }
  C3PO_ASSIGN_OR_RETURN(const v1::GetServerInfoResponse info, session.client->GetServerInfo(session.call_options()));
  if (flags.json) return PrintJsonLine(info);
  absl::PrintF("%s%s%s", ModelTable(info).Render(session.terminal),
               DefaultsTable(info.default_optimization()).Render(session.terminal),
               LimitsTable(info).Render(session.terminal));
  return absl::OkStatus();
}

}  // namespace

void AddInfoCommand(CLI::App& app, Session* session) {
  CLI::App* command = app.add_subcommand("info", "What the server runs, its defaults and limits");
  const auto flags = std::make_shared<InfoFlags>();
  command->add_option("--wait", flags->wait_seconds, "First wait up to this many seconds until the server is SERVING");
  command->add_flag("--json", flags->json, "Print the answer as JSON");
  command->callback([session, flags] { session->command = [flags](Session& chosen) { return Info(chosen, *flags); }; });
}

}  // namespace c3po
