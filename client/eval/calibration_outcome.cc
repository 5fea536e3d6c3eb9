#include "client/eval/calibration_outcome.h"

#include <algorithm>
#include <cstdint>

#include "client/eval/calibration_labels.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

double Share(const std::vector<bool>& right) {
  if (right.empty()) return 0;
  return static_cast<double>(std::count(right.begin(), right.end(), true)) / static_cast<double>(right.size());
}

}  // namespace

const char* CalibrationOutcomeName(CalibrationOutcome outcome) {
  switch (outcome) {
    case CalibrationOutcome::kMethod:
      return "method";
    case CalibrationOutcome::kOffsetOnly:
      return "offset";
    case CalibrationOutcome::kNothing:
      return "none";
  }
  return "";
}

PairedCounts Compare(const std::vector<bool>& after, const std::vector<bool>& before) {
  PairedOutcomes outcomes;
  for (size_t i = 0; i < after.size(); ++i) {
    ++outcomes.items;
    outcomes.right += after[i] ? 1 : 0;
    outcomes.improved += after[i] && !before[i] ? 1 : 0;
    outcomes.worsened += !after[i] && before[i] ? 1 : 0;
  }
  return {PairedDifference(outcomes), static_cast<size_t>(outcomes.improved), static_cast<size_t>(outcomes.worsened)};
}

absl::StatusOr<BeyondLabels> MeasureBeyondLabels(const HalvesOfScores& scores, const std::vector<bool>& right_none) {
  C3PO_ASSIGN_OR_RETURN(const LabelOffset offset_none, FitLabelOffset(scores.search_none));
  C3PO_ASSIGN_OR_RETURN(const LabelOffset offset, FitLabelOffset(scores.search));
  const std::vector<bool> none = RightUnder(offset_none, scores.check_none);
  const std::vector<bool> method = RightUnder(offset, scores.check);
  BeyondLabels beyond;
  beyond.accuracy_none = Share(none);
  beyond.accuracy = Share(method);
  beyond.lift = Compare(method, none);
  beyond.p_value =
      McNemarTest(static_cast<int64_t>(beyond.lift.improved), static_cast<int64_t>(beyond.lift.worsened)).p_value;
  beyond.offset = Compare(none, right_none);
  beyond.both = Compare(method, right_none);
  const std::optional<MarginAuc> before = MeasureMarginAuc(scores.check_none), after = MeasureMarginAuc(scores.check);
  if (before && after) {
    beyond.auc_none = PoolMarginAuc({*before});
    beyond.auc = PoolMarginAuc({*after});
    beyond.auc_difference = CompareMarginAuc({*after}, {*before});
  }
  return beyond;
}

CalibrationOutcome DecideOutcome(const BeyondLabels& beyond, double cost) {
  const Estimate& lift = beyond.lift.difference;
  const Estimate auc = beyond.auc_difference ? beyond.auc_difference->difference : Estimate();
  const bool is_ahead = lift.value > std::max(0.0, cost) && beyond.both.difference.value > 0;
  const bool is_shown = lift.low > 0 || auc.low > 0;
  if (is_ahead && is_shown && !(auc.high < 0)) return CalibrationOutcome::kMethod;
  return beyond.offset.difference.low > 0 ? CalibrationOutcome::kOffsetOnly : CalibrationOutcome::kNothing;
}

}  // namespace c3po
