#include "client/cli/calibration_output.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/eval/offset_reading.h"
#include "client/eval/option_setting.h"
#include "client/eval/report_reading.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

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

// "+8.3 points [+1.2, +15.3], 7 improved, 2 worsened".
std::string PairedText(const PairedCounts& counts) {
  return absl::StrCat(FormatPoints(counts.difference), " points, ", counts.improved, " improved, ", counts.worsened,
                      " worsened");
}

// Empty where there is none.
std::string AucText(const BeyondLabels& beyond) {
  if (!beyond.auc_difference) return "";
  return absl::StrFormat("; area under the curve of the choices' margin %.3f → %.3f, %s, p %s", beyond.auc_none->value,
                         beyond.auc->value, FormatAucDifference(beyond.auc_difference->difference),
                         FormatPValue(beyond.auc_difference->p_value));
}

Json ToJson(const Estimate& estimate) {
  return {{"value", estimate.value}, {"low", estimate.low}, {"high", estimate.high}};
}

Json ToJson(const PairedCounts& counts) {
  Json json = ToJson(counts.difference);
  json["improved"] = counts.improved;
  json["worsened"] = counts.worsened;
  return json;
}

Json ToJson(const BeyondLabels& beyond) {
  Json json = {{"accuracy_none", beyond.accuracy_none}, {"accuracy", beyond.accuracy},
               {"lift", ToJson(beyond.lift)},           {"p_value", beyond.p_value},
               {"offset_alone", ToJson(beyond.offset)}, {"to_model_as_it_is", ToJson(beyond.both)}};
  if (beyond.auc_difference) {
    json["auc_none"] = ToJson(*beyond.auc_none);
    json["auc"] = ToJson(*beyond.auc);
    json["auc_difference"] = ToJson(beyond.auc_difference->difference);
    json["auc_difference"]["p_value"] = beyond.auc_difference->p_value;
  }
  return json;
}

Json ToJson(const TriedPoint& point) {
  Json json = {{"axis", point.axis},         {"value", point.label},     {"questions", point.questions},
               {"accuracy", point.accuracy}, {"utility", point.utility}, {"seconds", point.seconds},
               {"worth", point.worth}};
  if (point.accuracy_after_offset) json["accuracy_after_offset"] = *point.accuracy_after_offset;
  if (point.auc) json["auc"] = *point.auc;
  if (point.orders_worse) json["orders_worse"] = true;
  return json;
}

Json ToJson(const std::string& collection, const CalibrationResult& result, const v1::GetServerInfoResponse& server) {
  Json notes = {{"made_by", "c3po calibrate"},
                {"created_unix_seconds", absl::ToUnixSeconds(absl::Now())},
                {"model_digest", server.model().digest()},
                {"outcome", CalibrationOutcomeName(result.outcome)},
                {"text", OutcomeText(collection, result)},
                {"helps", result.helps()},
                {"check_questions", result.questions},
                {"accuracy_none", result.accuracy_none},
                {"accuracy", result.accuracy},
                {"lift", ToJson(result.lift)},
                {"improved", result.improved},
                {"worsened", result.worsened},
                {"seconds_none", result.seconds_none},
                {"seconds", result.seconds},
                {"gate", result.gate},
                {"budget_spent", result.budget_spent},
                {"ended", result.ended}};
  if (result.beyond) notes["after_offset"] = ToJson(*result.beyond);
  notes["tried"] = Json::array();
  for (const TriedPoint& point : result.tried) notes["tried"].push_back(ToJson(point));
  return notes;
}

std::string ToText(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace

CalibrationPrinter::CalibrationPrinter(const Terminal& terminal, const CalibrationSettings& settings, std::FILE* said)
    : terminal_(terminal),
      said_(said),
      labels_(settings.labels.any()),
      start_(settings.start),
      points_max_(PointsOf(settings)),
      left_(points_max_, CheckShare(settings), settings.budget, absl::Now()),
      progress_(terminal, "answers", 0) {
  absl::FPrintF(said_, "%d questions%s; at most %d points\n", settings.questions.size(),
                settings.check.empty() ? ", half to search on and half to check on"
                                       : absl::StrCat(" to search on, ", settings.check.size(), " to check on"),
                points_max_);
  if (labels_) {
    absl::FPrintF(said_, "They share %d choices: points are ranked by what no offset of these labels gives.\n",
                  settings.labels.labels);
  }
  absl::FPrintF(said_, "  %-26s %-26s %8s  ", "axis", "value", "accuracy");
  absl::FPrintF(said_, labels_ ? "%12s  %5s" : "%8s%s", labels_ ? "after offset" : "utility", labels_ ? "AUC" : "");
  absl::FPrintF(said_, "  %10s  %8s\n", "s/question", "worth");
  std::fflush(said_);
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
    absl::FPrintF(said_, "  %-26s %-26s refused: %s\n", point.axis, point.label, Snippet(point.refused, 100));
  } else {
    std::string line = absl::StrFormat("  %-26s %-26s %6.1f %%  ", point.axis, point.label, 100 * point.accuracy);
    if (labels_) {
      absl::StrAppendFormat(&line, "%10.1f %%  %5s", 100 * point.accuracy_after_offset.value_or(0),
                            point.auc ? absl::StrFormat("%.3f", *point.auc) : "-");
    } else {
      absl::StrAppendFormat(&line, "%8.4f", point.utility);
    }
    absl::StrAppendFormat(&line, "  %10.3f  %8.4f  %s", point.seconds, point.worth,
                          point.leads          ? "leads"
                          : point.orders_worse ? "orders worse"
                                               : "");
    absl::FPrintF(said_, "%s\n", point.leads ? terminal_.Green(line) : line);
  }
  std::fflush(said_);
}

// Before → after of the best point, on the check.
void CalibrationPrinter::PrintFigures(const CalibrationResult& result) const {
  const auto row = [this](const char* what, double before, double after, const Estimate& difference, size_t improved,
                          size_t worsened) {
    absl::FPrintF(said_, "  %-30s %5.1f %% → %5.1f %%   %s points (95 %%), %d improved, %d worsened\n", what,
                  100 * before, 100 * after, FormatPoints(difference), improved, worsened);
  };
  if (!result.beyond) {
    absl::FPrintF(said_,
                  "  accuracy %.1f %% → %.1f %%, lift %+.1f points [%+.1f, %+.1f] (95 %%), %d improved, %d worsened\n",
                  100 * result.accuracy_none, 100 * result.accuracy, 100 * result.lift.value, 100 * result.lift.low,
                  100 * result.lift.high, result.improved, result.worsened);
    return;
  }
  const BeyondLabels& beyond = *result.beyond;
  row("accuracy", result.accuracy_none, result.accuracy, result.lift, result.improved, result.worsened);
  row("accuracy after an offset", beyond.accuracy_none, beyond.accuracy, beyond.lift.difference, beyond.lift.improved,
      beyond.lift.worsened);
  row("the offset alone", result.accuracy_none, beyond.accuracy_none, beyond.offset.difference, beyond.offset.improved,
      beyond.offset.worsened);
  if (!beyond.auc_difference) return;
  absl::FPrintF(said_, "  %-30s %7.3f → %7.3f   %s (95 %%), p %s\n", "AUC of the margin", beyond.auc_none->value,
                beyond.auc->value, FormatAucDifference(beyond.auc_difference->difference),
                FormatPValue(beyond.auc_difference->p_value));
}

void CalibrationPrinter::PrintOutcome(const std::string& collection, const CalibrationResult& result) {
  if (result.budget_spent) {
    absl::FPrintF(said_, "The budget was spent before every point was tried (--budget-seconds).\n");
  }
  if (result.ended) absl::FPrintF(said_, "It was ended before every point was tried.\n");
  if (result.unanswered > 0) {
    absl::FPrintF(said_, "%d questions were left out: the model gives no numbers for them.\n", result.unanswered);
  }
  if (result.none_led) {
    absl::FPrintF(said_, "Every point ordered the questions worse than the model alone: it stands in their place.\n");
  }
  absl::FPrintF(said_, "\nThe best point on %d questions that the search did not see:\n", result.questions);
  PrintFigures(result);
  absl::FPrintF(said_, "  %.3f s per question instead of %.3f s\n", result.seconds, result.seconds_none);
  const double lift = result.beyond ? result.beyond->lift.difference.value : result.lift.value;
  const double low = result.beyond ? result.beyond->lift.difference.low : result.lift.low;
  if (!result.helps() && lift > 0 && (!result.beyond || low > 0)) {
    absl::FPrintF(said_, "  The lift is too small for %.1f times the seconds (--cost-weight).\n",
                  result.seconds / std::max(1e-9, result.seconds_none));
  }
  if (!result.gate.empty()) {
    absl::FPrintF(said_, "  gate: %s (%d of %d)\n", result.gate, result.gated, result.questions);
  }
  if (result.helps()) {
    v1::OptimizationOptions settings = result.chosen;
    settings.set_use_offset(result.use_offset());
    absl::FPrintF(said_, "  settings: %s\n", DescribeOptions(settings));
  }
  if ((result.helps() || result.beyond) && lift > 0 && low <= 0) {
    absl::FPrintF(said_, "  The interval reaches 0: more questions (--questions) would tell.\n");
  }
  if (!result.helps() && result.ended) return;
  if (result.beyond || !result.helps()) {
    absl::FPrintF(said_, "%s\n", terminal_.Bold(OutcomeText(collection, result)));
  }
}

std::string OutcomeText(const std::string& collection, const CalibrationResult& result) {
  if (!result.beyond) {
    if (result.helps()) return absl::StrCat("C3PO helps on this collection (", collection, ").");
    return absl::StrCat("C3PO does not help on this collection (", collection,
                        "): its requests are best left as they are.");
  }
  const BeyondLabels& beyond = *result.beyond;
  const std::string figures = absl::StrFormat(
      "with an offset fitted after either, C3PO is right for %.1f %%, the model alone for %.1f %%: %s%s.",
      100 * beyond.accuracy, 100 * beyond.accuracy_none, PairedText(beyond.lift), AucText(beyond));
  const std::string offset = absl::StrCat("The offset alone gains ", PairedText(beyond.offset), ".");
  switch (result.outcome) {
    case CalibrationOutcome::kMethod:
      return absl::StrCat("C3PO helps beyond the labels' offset (", collection, "): ", figures, " ", offset);
    case CalibrationOutcome::kOffsetOnly:
      return absl::StrCat("No lift beyond the labels' offset (", collection, "): ", figures, " ", offset,
                          " Its requests are best answered by the model alone with this offset.");
    case CalibrationOutcome::kNothing:
      break;
  }
  return absl::StrCat("Neither C3PO nor the labels' offset is shown to help on this collection (", collection,
                      "): ", figures, " ", offset, " Its requests are best left as they are.");
}

std::string CalibrationNotes(const std::string& collection, const CalibrationResult& result,
                             const v1::GetServerInfoResponse& server) {
  return ToText(ToJson(collection, result, server));
}

std::string CalibrationJson(const std::string& collection, const CalibrationResult& result,
                            const v1::GetServerInfoResponse& server,
                            const std::optional<v1::OptimizationOptions>& stored) {
  Json document = {{"collection", collection}, {"stored", stored.has_value()}};
  if (stored) document["profile"] = Json::parse(OptionsJson(*stored));
  document.update(ToJson(collection, result, server));
  return ToText(document);
}

}  // namespace c3po
