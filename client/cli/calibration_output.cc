#include "client/cli/calibration_output.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/eval/option_setting.h"

namespace c3po {
namespace {

size_t PointsOf(const CalibrationSettings& settings) {
  size_t points = 2;  // none and the start
  for (const CalibrationAxis& axis : settings.axes) points += axis.candidates.size();
  return points;
}

// Where there are no questions of the user's own, half check and half search.
double CheckShare(const CalibrationSettings& settings) {
  if (settings.check.empty() || settings.questions.empty()) return 1;
  return static_cast<double>(settings.check.size()) / static_cast<double>(settings.questions.size());
}

}  // namespace

CalibrationPrinter::CalibrationPrinter(const Terminal& terminal, const CalibrationSettings& settings)
    : terminal_(terminal),
      start_(settings.start),
      points_max_(PointsOf(settings)),
      left_(points_max_, CheckShare(settings), settings.budget, absl::Now()),
      progress_(terminal, "answers", 0) {
  absl::PrintF("%d questions%s; at most %d points\n", settings.questions.size(),
               settings.check.empty() ? ", half to search on and half to check on"
                                      : absl::StrCat(" to search on, ", settings.check.size(), " to check on"),
               points_max_);
  absl::PrintF("  %-26s %-26s %8s  %8s  %10s  %8s\n", "axis", "value", "accuracy", "utility", "s/question", "worth");
  std::fflush(stdout);
}

void CalibrationPrinter::OnAnswer() {
  ++answers_of_point_;
  std::string note = points_ < points_max_ ? absl::StrCat("point ", points_ + 1, " of at most ", points_max_) : "check";
  if (const auto left = left_.At(absl::Now())) {
    absl::StrAppend(&note, ", at most ", absl::FormatDuration(absl::Trunc(*left, absl::Seconds(1))), " left");
  }
  progress_.Update(++answers_, note);
}

void CalibrationPrinter::OnPoint(const TriedPoint& point) {
  progress_.Clear();
  ++points_;
  left_.OnPoint(absl::Now(), answers_of_point_ > 0);
  answers_of_point_ = 0;
  if (!point.refused.empty()) {
    absl::PrintF("  %-26s %-26s refused: %s\n", point.axis, point.label, Snippet(point.refused, 100));
  } else {
    const std::string line =
        absl::StrFormat("  %-26s %-26s %6.1f %%  %8.4f  %10.3f  %8.4f  %s", point.axis, point.label,
                        100 * point.accuracy, point.utility, point.seconds, point.worth, point.leads ? "leads" : "");
    absl::PrintF("%s\n", point.leads ? terminal_.Green(line) : line);
  }
  std::fflush(stdout);
}

void CalibrationPrinter::PrintOutcome(const std::string& collection, const CalibrationResult& result) {
  if (result.budget_spent) absl::PrintF("The budget was spent before every point was tried (--budget-seconds).\n");
  if (result.ended) absl::PrintF("It was ended before every point was tried.\n");
  if (result.unanswered > 0) {
    absl::PrintF("%d questions were left out: the model gives no numbers for them.\n", result.unanswered);
  }
  absl::PrintF("\nThe best point on %d questions that the search did not see:\n", result.questions);
  absl::PrintF("  accuracy %.1f %% → %.1f %%, lift %+.1f points [%+.1f, %+.1f] (95 %%), %d improved, %d worsened\n",
               100 * result.accuracy_none, 100 * result.accuracy, 100 * result.lift.value, 100 * result.lift.low,
               100 * result.lift.high, result.improved, result.worsened);
  absl::PrintF("  %.3f s per question instead of %.3f s\n", result.seconds, result.seconds_none);
  if (!result.helps && result.lift.value > 0) {
    absl::PrintF("  The lift is too small for %.1f times the seconds (--cost-weight).\n",
                 result.seconds / std::max(1e-9, result.seconds_none));
  }
  if (!result.gate.empty()) absl::PrintF("  gate: %s (%d of %d)\n", result.gate, result.gated, result.questions);
  if (!result.helps && result.ended) return;
  if (!result.helps) {
    absl::PrintF("%s\n", terminal_.Bold(absl::StrCat("C3PO does not help on this collection (", collection,
                                                     "): its requests are best left as they are.")));
    return;
  }
  absl::PrintF("  settings: %s\n", DescribeOptions(result.chosen));
  if (result.lift.low <= 0) {
    absl::PrintF("  The interval reaches 0: more questions (--questions) would tell.\n");
  }
}

std::string CalibrationNotes(const CalibrationResult& result, const v1::GetServerInfoResponse& server) {
  using Json = nlohmann::ordered_json;
  Json notes = {{"made_by", "c3po calibrate"},
                {"created_unix_seconds", absl::ToUnixSeconds(absl::Now())},
                {"model_digest", server.model().digest()},
                {"helps", result.helps},
                {"check_questions", result.questions},
                {"accuracy_none", result.accuracy_none},
                {"accuracy", result.accuracy},
                {"lift", {{"value", result.lift.value}, {"low", result.lift.low}, {"high", result.lift.high}}},
                {"improved", result.improved},
                {"worsened", result.worsened},
                {"seconds_none", result.seconds_none},
                {"seconds", result.seconds},
                {"gate", result.gate},
                {"budget_spent", result.budget_spent},
                {"ended", result.ended}};
  notes["tried"] = Json::array();
  for (const TriedPoint& point : result.tried) {
    notes["tried"].push_back({{"axis", point.axis},
                              {"value", point.label},
                              {"questions", point.questions},
                              {"accuracy", point.accuracy},
                              {"utility", point.utility},
                              {"seconds", point.seconds},
                              {"worth", point.worth}});
  }
  return notes.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace c3po
