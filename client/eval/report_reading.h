#ifndef C3PO_CLIENT_EVAL_REPORT_READING_H_
#define C3PO_CLIENT_EVAL_REPORT_READING_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "client/eval/run_summary.h"

namespace c3po {

// What a run shows, in words made from its figures. Pure functions.

// A mark that c3po sets itself for a group of tasks. Rates in [0, 1].
struct Mark {
  absl::string_view group;
  double lift;  // at least
  bool interval_above_zero;
  bool ahead_of_vote;  // of the neighbors' label vote, where it was run
};
// On top of these: worsened at most a third of improved.
inline constexpr Mark kMarks[] = {{"adaptation", 0.10, false, true}, {"knowledge", 0.03, true, false}};

struct MarkReading {
  std::string group, method;
  bool met = false;
  std::string text;                 // what was wanted and what came
  std::vector<std::string> limits;  // where not met: which of headroom, transfer and embedding shows; sentences
};

// The optimization method with the largest lift over all tasks (ties: the first); the one that marks and plots of
// single items are about. Chosen on the same items, hence a little optimistic when there are many. Null: none was run.
const MethodSummary* LeadMethod(const RunSummary& summary);

// One for each of kMarks whose group is in the run, of the lead method.
std::vector<MarkReading> ReadMarks(const RunSummary& summary);

// Sentences: first how much of the lift is the labels' offset (offset_reading.h); every method against the baseline,
// losses as plainly as gains; tasks where the lead method harms; then the marks. A run without compared items says so.
std::vector<std::string> ReadingOf(const RunSummary& summary);

// Name of a method as a reader knows it: "C3PO (ngd)", "the oracle (oracle)".
std::string DisplayName(const MethodSummary& method);

// "51.2 [48.0, 54.1]", in percent; "+5.0 [+2.1, +8.0]", in points.
std::string FormatRate(const Estimate& estimate);
std::string FormatPoints(const Estimate& estimate);
// "41 %"; never "-0 %".
std::string FormatShare(double share);
// "+5.0": a rate in [-1, 1] as points.
std::string FormatPoints(double difference);
std::string FormatPValue(double p);
// "0.012", "1.35", "12.4": three digits that matter.
std::string FormatSeconds(double seconds);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_REPORT_READING_H_
