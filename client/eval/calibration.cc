#include "client/eval/calibration.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/eval/choice_metrics.h"
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
double Utility(const Results& results, Metric metric, size_t count) {
  double sum = 0;
  for (size_t i = 0; i < count; ++i) {
    sum += 0.5 * (results[i].correct ? 1.0 : 0.0) + 0.5 * GoldProbability(results[i], metric);
  }
  return count == 0 ? 0.0 : sum / static_cast<double>(count);
}

bool IsRefusal(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsInternal(status) || absl::IsFailedPrecondition(status) ||
         absl::IsUnimplemented(status) || absl::IsNotFound(status);
}

// The model's own confidence, known from its answer where every choice is one token.
std::optional<double> BaseConfidence(const ItemResult& none) {
  if (none.log_likelihoods.size() < 2) return std::nullopt;
  for (const int count : none.token_counts) {
    if (count != 1) return std::nullopt;
  }
  const double largest = *std::max_element(none.log_likelihoods.begin(), none.log_likelihoods.end());
  double sum = 0;
  for (const double log_likelihood : none.log_likelihoods) sum += std::exp(log_likelihood - largest);
  return 1.0 / sum;
}

// The optimized model's probability of what it answers, among the choices' length-normalized likelihoods.
std::optional<double> OptimizedConfidence(const ItemResult& optimized) {
  if (optimized.log_likelihoods.size() < 2) return std::nullopt;
  std::vector<double> normalized;
  for (size_t i = 0; i < optimized.log_likelihoods.size(); ++i) {
    normalized.push_back(optimized.log_likelihoods[i] / std::max(1, optimized.token_counts[i]));
  }
  const double largest = *std::max_element(normalized.begin(), normalized.end());
  double sum = 0;
  for (const double score : normalized) sum += std::exp(score - largest);
  return 1.0 / sum;
}

struct GateThresholds {
  double distance = std::numeric_limits<double>::infinity();
  double confidence = std::numeric_limits<double>::infinity();
  double optimized_confidence = 0;
  bool any() const { return std::isfinite(distance) || std::isfinite(confidence) || optimized_confidence > 0; }
  bool Skips(const ItemResult& optimized, const ItemResult& none) const {
    if (!optimized.neighbor_distances.empty() && optimized.neighbor_distances[0] > distance) return true;
    const std::optional<double> after = OptimizedConfidence(optimized);
    if (after && *after < optimized_confidence) return true;
    const std::optional<double> base = BaseConfidence(none);
    return base && *base >= confidence;
  }
};

struct GatedCounts {
  size_t right = 0, improved = 0, worsened = 0, gated = 0;
};

GatedCounts CountGated(const Results& optimized, const Results& none, const GateThresholds& gate) {
  GatedCounts counts;
  for (size_t i = 0; i < optimized.size(); ++i) {
    const bool skipped = gate.Skips(optimized[i], none[i]);
    const bool right = skipped ? none[i].correct : optimized[i].correct;
    counts.right += right ? 1 : 0;
    counts.improved += right && !none[i].correct ? 1 : 0;
    counts.worsened += !right && none[i].correct ? 1 : 0;
    counts.gated += skipped ? 1 : 0;
  }
  return counts;
}

// A gate is chosen where, on the questions of the search, it at least halves the harm, by no fewer than three answers,
// and leaves nine tenths of the ungated lift. There are a few dozen questions: a weaker rule finds a gate by chance,
// and so would several thresholds at once, which is why there is one.
constexpr double kLiftKept = 0.9, kHarmKept = 0.5;
constexpr size_t kHarmSpared = 3;

std::vector<GateThresholds> GateCandidates(const Results& optimized) {
  std::vector<GateThresholds> candidates;
  std::vector<double> distances;
  for (const ItemResult& result : optimized) {
    if (!result.neighbor_distances.empty()) distances.push_back(result.neighbor_distances[0]);
  }
  for (const double q : {0.9, 0.8, 0.7, 0.5}) {
    if (!distances.empty()) candidates.emplace_back().distance = Quantile(distances, q);
  }
  for (const double confidence : {0.99, 0.95, 0.9, 0.8}) candidates.emplace_back().confidence = confidence;
  for (const double confidence : {0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.9}) {
    candidates.emplace_back().optimized_confidence = confidence;
  }
  return candidates;
}

GateThresholds ChooseGate(const Results& optimized, const Results& none) {
  GateThresholds best;
  const GatedCounts ungated = CountGated(optimized, none, best);
  const auto lift = [](const GatedCounts& counts) {
    return static_cast<double>(counts.improved) - static_cast<double>(counts.worsened);
  };
  GatedCounts least = ungated;
  for (const GateThresholds& gate : GateCandidates(optimized)) {
    const GatedCounts counts = CountGated(optimized, none, gate);
    const auto harm = static_cast<double>(counts.worsened);
    if (harm > kHarmKept * static_cast<double>(ungated.worsened) || counts.worsened + kHarmSpared > ungated.worsened ||
        lift(counts) < kLiftKept * lift(ungated)) {
      continue;
    }
    if (best.any() &&
        std::make_pair(counts.worsened, least.improved) >= std::make_pair(least.worsened, counts.improved)) {
      continue;
    }
    least = counts;
    best = gate;
  }
  return best;
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
    if (!best_ && result_.ended) return absl::CancelledError("ended before a point was tried");
    if (!best_) return absl::FailedPreconditionError(absl::StrCat("no point could be tried: ", last_refusal_));
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
    Record(std::move(point), none_search_);
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

  void Record(TriedPoint point, const Results& results) {
    point.questions = results.size();
    point.accuracy = Accuracy(results);
    point.utility = Utility(results, settings_.metric, results.size());
    point.seconds = Seconds(results);
    point.worth = Worth(point.utility, point.seconds);
    if (settings_.on_point) settings_.on_point(point);
    result_.tried.push_back(std::move(point));
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
    if (!results.ok()) {
      if (!IsRefusal(results.status())) return results.status();
      point.refused = last_refusal_ = std::string(results.status().message());
      Record(std::move(point), {});
      return absl::OkStatus();
    }
    const double margin = settings_.drop_margin;
    if (best_ && Utility(*results, settings_.metric, half) < Utility(best_results_, settings_.metric, half) - margin) {
      Record(std::move(point), *results);
      return absl::OkStatus();
    }
    absl::StatusOr<Results> rest = ScoreAll(options, questions.subspan(half));
    if (!rest.ok()) {
      if (!IsRefusal(rest.status())) return rest.status();
      point.refused = last_refusal_ = std::string(rest.status().message());
      Record(std::move(point), {});
      return absl::OkStatus();
    }
    std::move(rest->begin(), rest->end(), std::back_inserter(*results));
    const double worth = Worth(Utility(*results, settings_.metric, results->size()), Seconds(*results));
    point.leads = !best_ || worth > best_->worth;
    if (point.leads) {
      best_results_ = *results;
      best_ = point;
      best_->worth = worth;
    }
    Record(std::move(point), *results);
    return absl::OkStatus();
  }

  absl::Status Check() {
    C3PO_ASSIGN_OR_RETURN(const Results check, ScoreAll(best_->options, check_));
    const GateThresholds gate = ChooseGate(best_results_, none_search_);
    const GatedCounts counts = CountGated(check, none_check_, gate);
    result_.chosen = best_->options;
    if (std::isfinite(gate.distance)) result_.chosen.mutable_gate()->set_max_neighbor_distance(gate.distance);
    if (std::isfinite(gate.confidence)) result_.chosen.mutable_gate()->set_max_base_confidence(gate.confidence);
    if (gate.optimized_confidence > 0) {
      result_.chosen.mutable_gate()->set_min_optimized_confidence(gate.optimized_confidence);
    }
    if (gate.any()) {
      result_.chosen.mutable_gate()->set_enabled(true);
      result_.gate = DescribeGate(gate);
    }
    const double items = static_cast<double>(check.size());
    result_.questions = check.size();
    result_.improved = counts.improved;
    result_.worsened = counts.worsened;
    result_.gated = counts.gated;
    result_.accuracy = static_cast<double>(counts.right) / items;
    result_.accuracy_none = Accuracy(none_check_);
    result_.seconds = Seconds(check);
    result_.seconds_none = Seconds(none_check_);
    result_.lift = PairedDifference({static_cast<int64_t>(check.size()), static_cast<int64_t>(counts.right),
                                     static_cast<int64_t>(counts.improved), static_cast<int64_t>(counts.worsened)});
    result_.helps = result_.lift.value > 0 && result_.lift.value > Cost(result_.seconds);
    return absl::OkStatus();
  }

  static std::string DescribeGate(const GateThresholds& gate) {
    std::string text;
    if (std::isfinite(gate.distance)) {
      text = absl::StrFormat("skip when the nearest neighbor is farther than %.4f", gate.distance);
    }
    if (std::isfinite(gate.confidence)) {
      absl::StrAppendFormat(&text, "%sskip when the model is at least %.0f %% sure", text.empty() ? "" : "; ",
                            100 * gate.confidence);
    }
    if (gate.optimized_confidence > 0) {
      absl::StrAppendFormat(&text, "%srevert when the optimized model is less than %.0f %% sure",
                            text.empty() ? "" : "; ", 100 * gate.optimized_confidence);
    }
    return text;
  }

  const CalibrationSettings& settings_;
  CalibrationScorer& scorer_;
  const absl::Time start_;
  CalibrationResult result_;
  std::vector<size_t> search_, check_;
  Results none_search_, none_check_;  // on either
  Results best_results_;              // on search_
  std::optional<TriedPoint> best_;    // of the points that were asked all of search_
  std::string last_refusal_;
};

}  // namespace

void ApplyPatch(const v1::OptimizationOptions& patch, v1::OptimizationOptions* options) {
  if (patch.critical_layers_size() > 0) options->clear_critical_layers();
  options->MergeFrom(patch);
}

absl::StatusOr<CalibrationResult> Calibrate(const CalibrationSettings& settings, CalibrationScorer& scorer) {
  return Search(settings, scorer).Run();
}

}  // namespace c3po
