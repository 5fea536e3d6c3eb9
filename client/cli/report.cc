// c3po report: shows evaluation runs that lie in folders. It asks no server.

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/commands.h"
#include "client/eval/html_report.h"
#include "client/eval/report_input.h"
#include "client/eval/run_summary.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct ReportFlags {
  std::vector<std::string> folders;
  std::string out;
  std::string format = "html";
};

absl::Status Report(const ReportFlags& flags) {
  if (flags.format == "html") {
    const std::string file = flags.out.empty() ? absl::StrCat(flags.folders.front(), "/report.html") : flags.out;
    C3PO_RETURN_IF_ERROR(WriteHtmlReport(flags.folders, file));
    absl::PrintF("%s\n", file);
    return absl::OkStatus();
  }
  C3PO_ASSIGN_OR_RETURN(const ReportInput input, ReadRunFolders(flags.folders));
  const RunSummary summary = Summarize(input);
  const std::string text = flags.format == "markdown" ? RenderMarkdown(summary)
                           : flags.format == "json"   ? absl::StrCat(RenderJson(summary), "\n")
                                                      : RenderText(summary);
  if (!flags.out.empty()) return WriteFileDurably(flags.out, text);
  absl::PrintF("%s", text);
  return absl::OkStatus();
}

}  // namespace

void AddReportCommand(CLI::App& app, Session* session) {
  CLI::App* command =
      app.add_subcommand("report", "Accuracy, differences and cost of evaluation runs, from their folders");
  const auto flags = std::make_shared<ReportFlags>();
  command->add_option("folders", flags->folders, "Folders that c3po eval wrote; several are shown as one run")
      ->required()
      ->check(CLI::ExistingDirectory);
  command->add_option("--out", flags->out,
                      "File to write. Default: report.html in the first folder; other formats go to stdout");
  command->add_option("--format", flags->format, "html (one file, nothing loaded from elsewhere), text, markdown, json")
      ->check(CLI::IsMember({"html", "text", "markdown", "json"}))
      ->capture_default_str();
  command->callback([session, flags] { session->command = [flags](Session&) { return Report(*flags); }; });
}

}  // namespace c3po
