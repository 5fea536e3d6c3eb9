#include "client/eval/calibration.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/eval/calibration_gate.h"
#include "client/eval/choice_metrics.h"
#include "index/base/label_offset.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Results = std::vector<ItemResult>;

double Accuracy(const Results& results) {
  size_t right = 0;
  for (const ItemResult& result : results) right += result.correct ? 1 : 0;
  return results.empty() ? 0.0 : static_cast<double>(right) / static_cast<double>(results.size());
}

double Seconds(const Results& results) {
  double sum = 0;
  for (const ItemResult& result : results) sum += result.seconds;
  return results.empty() ? 0.0 : sum / static_cast<double>(results.size());
}

// Accuracy alone moves in steps of one question, which on a few dozen questions is mostly noise; the right choice's
// probability says the same more finely.
double PlainUtility(const Results& results, Metric metric) {
  double sum = 0;
  for (const ItemResult& result : results) {
    sum += 0.5 * (result.correct ? 1.0 : 0.0) + 0.5 * GoldProbability(result, metric);
  }
  return results.empty() ? 0.0 : sum / static_cast<double>(results.size());
}

// What a list of answers is worth, before what it costs.
struct Measure {
  double utility = 0;
  std::optional<LabelUtility> of_labels;
};

bool IsRefusal(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsInternal(status) || absl::IsFailedPrecondition(status) ||
         absl::IsUnimplemented(status) || absl::IsNotFound(status);
}

std::vector<bool> RightOf(const Results& results) {
  std::vector<bool> right;
  for (const ItemResult& result : results) right.push_back(result.correct);
  return right;
}

class Search {
 public:
  Search(const CalibrationSettings& settings, CalibrationScorer& scorer)
      : settings_(settings), scorer_(scorer), start_(Now()) {}

  absl::StatusOr<CalibrationResult> Run() {
    C3PO_RETURN_IF_ERROR(ScoreNone());
    if (search_.empty() || check_.empty()) {
      return absl::InvalidArgumentError("too few questions: some are needed to search on and some to check on");
    }
    C3PO_RETURN_IF_ERROR(Try("start", "start", settings_.start));
    for (const CalibrationAxis& axis : settings_.axes) C3PO_RETURN_IF_ERROR(SearchAxis(axis));
    if (!measured_any_ && result_.ended) return absl::CancelledError("ended before a point was tried");
    if (!measured_any_) return absl::FailedPreconditionError(absl::StrCat("no point could be tried: ", last_refusal_));
    C3PO_RETURN_IF_ERROR(Check());
    return std::move(result_);
  }

 private:
  absl::Time Now() const { return settings_.now ? settings_.now() : absl::Now(); }

  // The model as it is answers all questions, which are divided by its answers.
  absl::Status ScoreNone() {
    v1::OptimizationOptions none;
    none.set_method(v1::METHOD_NONE);
    std::vector<size_t> questions = settings_.questions;
    C3PO_ASSIGN_OR_RETURN(Results results, ScorePlain(none, &questions));
    if (settings_.check.empty()) {
      Divide(questions, std::move(results));
    } else {
      search_ = std::move(questions);
      check_ = settings_.check;
      none_search_ = std::move(results);
      C3PO_ASSIGN_OR_RETURN(none_check_, ScorePlain(none, &check_));
    }
    TriedPoint point;
    point.axis = "method";
    point.label = "none";
    point.options = none;
    C3PO_ASSIGN_OR_RETURN(const Measure measure, MeasureAnswers(none_search_, search_));
    none_utility_ = measure.of_labels;
    Record(std::move(point), none_search_, measure);
    return absl::OkStatus();
  }

  // By turns among the questions of one kind; the kinds begin on either side by turns.
  void Divide(const std::vector<size_t>& questions, Results none) {
    std::map<std::pair<int, bool>, bool> to_search;  // where the next question of a kind goes
    for (size_t i = 0; i < none.size(); ++i) {
      const auto kind = std::make_pair(none[i].gold, none[i].correct);
      bool& search = to_search.emplace(kind, to_search.size() % 2 == 0).first->second;
      (search ? search_ : check_).push_back(questions[i]);
      (search ? none_search_ : none_check_).push_back(std::move(none[i]));
      search = !search;
    }
  }

  // Of the model as it is. A question that it gives no numbers for is taken out of `questions`.
  absl::StatusOr<Results> ScorePlain(const v1::OptimizationOptions& none, std::vector<size_t>* questions) {
    absl::StatusOr<Results> all = ScoreAll(none, *questions);
    if (!absl::IsInternal(all.status())) return all;
    Results results;
    std::vector<size_t> answered;
    for (const size_t question : *questions) {
      absl::StatusOr<Results> one = ScoreAll(none, {question});
      if (absl::IsInternal(one.status())) {
        ++result_.unanswered;
        continue;
      }
      C3PO_RETURN_IF_ERROR(one.status());
      answered.push_back(question);
      results.push_back(std::move(one->front()));
    }
    if (answered.empty() && !questions->empty()) return all.status();
    *questions = std::move(answered);
    return results;
  }

  absl::StatusOr<Results> ScoreAll(const v1::OptimizationOptions& options, absl::Span<const size_t> questions) {
    C3PO_ASSIGN_OR_RETURN(Results results, scorer_.Score(options, questions));
    if (results.size() != questions.size()) return absl::InternalError("the scorer left questions without an answer");
    return results;
  }

  // `questions`: those that were answered, in the answers' order.
  absl::StatusOr<Measure> MeasureAnswers(const Results& results, absl::Span<const size_t> questions) const {
    Measure measure;
    if (!settings_.labels.any()) {
      measure.utility = PlainUtility(results, settings_.metric);
      return measure;
    }
    C3PO_ASSIGN_OR_RETURN(const LabelScores scores, LabelScoresOf(settings_.labels, questions, results));
    measure.of_labels = MeasureLabelUtility(scores);
    measure.utility = measure.of_labels->mean();
    return measure;
  }

  void Record(TriedPoint point, const Results& results, const Measure& measure) {
    point.questions = results.size();
    point.accuracy = Accuracy(results);
    point.utility = measure.utility;
    if (measure.of_labels) {
      point.accuracy_after_offset = measure.of_labels->accuracy;
      if (measure.of_labels->auc) point.auc = measure.of_labels->auc->value;
    }
    point.seconds = Seconds(results);
    point.worth = Worth(point.utility, point.seconds);
    if (settings_.on_point) settings_.on_point(point);
    result_.tried.push_back(std::move(point));
  }

  void RecordRefusal(TriedPoint point, const absl::Status& refusal) {
    point.refused = last_refusal_ = std::string(refusal.message());
    Record(std::move(point), {}, {});
  }

  double Cost(double seconds) const {
    const double plain = Seconds(none_search_);
    return plain > 0 && seconds > plain ? settings_.cost_weight * std::log2(seconds / plain) : 0;
  }
  double Worth(double utility, double seconds) const { return utility - Cost(seconds); }

  // True once the user has ended the search, which is noted and told once.
  bool Ended() {
    if (result_.ended) return true;
    if (!settings_.ended || !settings_.ended()) return false;
    result_.ended = true;
    if (settings_.on_ended) settings_.on_ended();
    return true;
  }

  absl::Status SearchAxis(const CalibrationAxis& axis) {
    const v1::OptimizationOptions base = best_ ? best_->options : settings_.start;
    if (axis.descent_only && base.method() != v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT) return absl::OkStatus();
    for (const CalibrationCandidate& candidate : axis.candidates) {
      v1::OptimizationOptions options = base;
      ApplyPatch(candidate.patch, &options);
      if (options.SerializeAsString() == base.SerializeAsString()) continue;
      if (Ended()) return absl::OkStatus();
      if (Now() - start_ >= settings_.budget) {
        result_.budget_spent = true;
        return absl::OkStatus();
      }
      C3PO_RETURN_IF_ERROR(Try(axis.name, candidate.label, options));
    }
    return absl::OkStatus();
  }

  // Half of the questions first: a point that is far behind there is not asked the other half.
  absl::Status Try(const std::string& axis, const std::string& label, const v1::OptimizationOptions& options) {
    const absl::Status status = TryPoint(axis, label, options);
    // The point that was being tried is left where it was.
    return absl::IsCancelled(status) && Ended() ? absl::OkStatus() : status;
  }

  absl::Status TryPoint(const std::string& axis, const std::string& label, const v1::OptimizationOptions& options) {
    TriedPoint point;
    point.axis = axis;
    point.label = label;
    point.options = options;
    const absl::Span<const size_t> questions = search_;
    const size_t half = (questions.size() + 1) / 2;
    absl::StatusOr<Results> results = ScoreAll(options, questions.subspan(0, half));
    if (IsRefusal(results.status())) RecordRefusal(std::move(point), results.status());
    if (!results.ok()) return IsRefusal(results.status()) ? absl::OkStatus() : results.status();
    if (best_) {
      C3PO_ASSIGN_OR_RETURN(const Measure now, MeasureAnswers(*results, questions.subspan(0, half)));
      const Results best_half(best_results_.begin(), best_results_.begin() + static_cast<std::ptrdiff_t>(half));
      C3PO_ASSIGN_OR_RETURN(const Measure then, MeasureAnswers(best_half, questions.subspan(0, half)));
      if (now.utility < then.utility - settings_.drop_margin) {
        Record(std::move(point), *results, now);
        return absl::OkStatus();
      }
    }
    absl::StatusOr<Results> rest = ScoreAll(options, questions.subspan(half));
    if (IsRefusal(rest.status())) RecordRefusal(std::move(point), rest.status());
    if (!rest.ok()) return IsRefusal(rest.status()) ? absl::OkStatus() : rest.status();
    std::move(rest->begin(), rest->end(), std::back_inserter(*results));
    C3PO_ASSIGN_OR_RETURN(const Measure measure, MeasureAnswers(*results, questions));
    measured_any_ = true;
    point.orders_worse = measure.of_labels && OrdersWorse(*measure.of_labels, *none_utility_);
    const double worth = Worth(measure.utility, Seconds(*results));
    point.leads = !point.orders_worse && (!best_ || worth > best_->worth);
    if (point.leads) {
      best_results_ = *results;
      best_ = point;
      best_->worth = worth;
    }
    Record(std::move(point), *results, measure);
    return absl::OkStatus();
  }

  // Where no point may lead, the model as it is stands in the place of the best.
  absl::Status Check() {
    Results check = none_check_;
    if (best_) {
      C3PO_ASSIGN_OR_RETURN(check, ScoreAll(best_->options, check_));
      result_.chosen = best_->options;
    } else {
      best_results_ = none_search_;
      result_.chosen.set_method(v1::METHOD_NONE);
      result_.none_led = true;
    }
    const GateThresholds gate = ChooseGate(best_results_, none_search_, [this](const Results& results) {
      if (!settings_.labels.any()) return RightOf(results);
      // Each of these answers has been read before.
      return RightAfterOffset(*LabelScoresOf(settings_.labels, search_, results));
    });
    gate.WriteTo(&result_.chosen);
    result_.gate = gate.Describe();
    for (size_t i = 0; i < check.size(); ++i) result_.gated += gate.Skips(check[i], none_check_[i]) ? 1 : 0;
    const Results after = Gated(gate, check, none_check_);
    const PairedCounts counts = Compare(RightOf(after), RightOf(none_check_));
    result_.questions = check.size();
    result_.lift = counts.difference;
    result_.improved = counts.improved;
    result_.worsened = counts.worsened;
    result_.accuracy = Accuracy(after);
    result_.accuracy_none = Accuracy(none_check_);
    result_.seconds = Seconds(check);
    result_.seconds_none = Seconds(none_check_);
    if (!settings_.labels.any()) {
      const bool helps = result_.lift.value > 0 && result_.lift.value > Cost(result_.seconds);
      result_.outcome = helps ? CalibrationOutcome::kMethod : CalibrationOutcome::kNothing;
      return absl::OkStatus();
    }
    HalvesOfScores scores;
    const auto of = [this](absl::Span<const size_t> questions, const Results& results) {
      return LabelScoresOf(settings_.labels, questions, results);
    };
    C3PO_ASSIGN_OR_RETURN(scores.search_none, of(search_, none_search_));
    C3PO_ASSIGN_OR_RETURN(scores.search, of(search_, Gated(gate, best_results_, none_search_)));
    C3PO_ASSIGN_OR_RETURN(scores.check_none, of(check_, none_check_));
    C3PO_ASSIGN_OR_RETURN(scores.check, of(check_, after));
    C3PO_ASSIGN_OR_RETURN(result_.beyond, MeasureBeyondLabels(scores, RightOf(none_check_)));
    result_.outcome = DecideOutcome(*result_.beyond, Cost(result_.seconds));
    return absl::OkStatus();
  }

  const CalibrationSettings& settings_;
  CalibrationScorer& scorer_;
  const absl::Time start_;
  CalibrationResult result_;
  std::vector<size_t> search_, check_;
  Results none_search_, none_check_;          // on either
  Results best_results_;                      // on search_
  std::optional<TriedPoint> best_;            // of the points that were asked all of search_, and may lead
  std::optional<LabelUtility> none_utility_;  // where there are labels
  bool measured_any_ = false;                 // whether a point was asked all of search_
  std::string last_refusal_;
};

}  // namespace

void ApplyPatch(const v1::OptimizationOptions& patch, v1::OptimizationOptions* options) {
  if (patch.critical_layers_size() > 0) options->clear_critical_layers();
  if (patch.has_filter()) options->clear_filter();
  options->MergeFrom(patch);
}

absl::StatusOr<CalibrationResult> Calibrate(const CalibrationSettings& settings, CalibrationScorer& scorer) {
  return Search(settings, scorer).Run();
}

}  // namespace c3po
