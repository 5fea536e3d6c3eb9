#include "client/cli/run_output.h"

#include <cstdio>

#include "absl/strings/str_format.h"
#include "client/eval/html_report.h"
#include "client/eval/run_summary.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::Status PrintRun(const std::string& folder, const std::string& report_file) {
  C3PO_ASSIGN_OR_RETURN(const RunSummary summary, SummarizeRun(folder));
  absl::PrintF("%s", RenderText(summary));
  std::fflush(stdout);
  if (report_file.empty()) return absl::OkStatus();
  C3PO_RETURN_IF_ERROR(WriteHtmlReport(folder, report_file));
  absl::FPrintF(stderr, "report: %s\n", report_file);
  return absl::OkStatus();
}

}  // namespace c3po
