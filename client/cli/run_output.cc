#include "client/cli/run_output.h"

#include <map>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/eval/item_result.h"
#include "client/eval/sample_line.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::Status PrintRun(const std::string& folder, const std::string& report_file) {
  if (!report_file.empty()) return absl::UnimplementedError("--report");
  C3PO_ASSIGN_OR_RETURN(const std::vector<NumberedLine> lines, ReadLines(folder + "/items.jsonl"));
  std::map<std::pair<std::string, std::string>, std::pair<int, int>> counts;
  std::map<std::string, double> seconds;
  for (const NumberedLine& line : lines) {
    C3PO_ASSIGN_OR_RETURN(const ItemResult result, ParseItemResult(line.text));
    auto& [right, asked] = counts[{result.task, result.method}];
    right += result.correct ? 1 : 0;
    ++asked;
    seconds[result.method] += result.seconds;
  }
  for (const auto& [key, count] : counts) {
    absl::PrintF("%-16s %-12s %4d/%4d = %.1f %%\n", key.first, key.second, count.first, count.second,
                 100.0 * count.first / count.second);
  }
  return absl::OkStatus();
}

}  // namespace c3po
