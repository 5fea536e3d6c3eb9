#ifndef C3PO_CLIENT_EVAL_REPORT_PLOTS_H_
#define C3PO_CLIENT_EVAL_REPORT_PLOTS_H_

#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "client/eval/run_summary.h"

namespace c3po {

// The report's pictures, each an inline <svg> (report_svg.h), or "" where the run holds nothing to draw. Pure
// functions.

// The color of each method, the same in all pictures: its class in the page's style sheet, "m0" to "m7".
using MethodColors = std::map<std::string, std::string>;
MethodColors ColorsOf(const ReportInput& input);

// How the answer to one question changed from the baseline to a method.
enum class Change { kImproved, kWorsened, kUnchanged };
struct ItemChange {
  const ItemResult* before = nullptr;  // of the baseline; not null, not owned
  const ItemResult* after = nullptr;   // of the method; likewise
  Change change = Change::kUnchanged;
};
// The items that both the baseline and `method` answered, in the input's order. Points into `input`.
std::vector<ItemChange> ChangesOf(const ReportInput& input, absl::string_view baseline, absl::string_view method);

// A row per method: a dot at the accuracy, whiskers over its interval, a line down from the baseline.
std::string PlotAccuracy(const ScopeSummary& scope, const MethodColors& colors);
// A row per task: a bar from 0 to the oracle's lift (a diamond), a dot at the lift of each optimization method.
std::string PlotLiftAgainstOracle(const std::vector<ScopeSummary>& tasks, const MethodColors& colors);
// A row per method: worsened to the left of the middle, improved to the right.
std::string PlotChanges(const ScopeSummary& scope);
// The same of one method, a row per task.
std::string PlotChangesByTask(const std::vector<ScopeSummary>& tasks, absl::string_view method);
// Seconds per question to the right (logarithmic), accuracy upward; a point with whiskers per method but the oracle.
std::string PlotCost(const ScopeSummary& scope, const MethodColors& colors);
// The lift over the baseline along the points, with a band over the interval; a line for each scope.
std::string PlotAblation(const AblationSummary& ablation);
// Counts of questions by the distance of the nearest neighbor; improved above the middle, worsened below.
std::string PlotNeighborDistance(const std::vector<ItemChange>& changes);
// A point per question: the neighbors' loss before and after optimization.
std::string PlotLosses(const std::vector<ItemChange>& changes);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_REPORT_PLOTS_H_
