#include "client/eval/calibration_gate.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/eval/choice_scores.h"
#include "client/eval/statistics.h"

namespace c3po {
namespace {

using Results = std::vector<ItemResult>;

constexpr double kLiftKept = 0.9, kHarmKept = 0.5;
constexpr size_t kHarmSpared = 3;

// The largest of softmax(scores).
double LargestProbability(const std::vector<double>& scores) {
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double score : scores) sum += std::exp(score - largest);
  return 1.0 / sum;
}

std::optional<double> BaseConfidence(const ItemResult& none) {
  const auto is_one = [](int count) { return count == 1; };
  if (none.log_likelihoods.size() < 2) return std::nullopt;
  if (!std::all_of(none.token_counts.begin(), none.token_counts.end(), is_one)) return std::nullopt;
  return LargestProbability(none.log_likelihoods);
}

// The optimized model's probability of what it answers, among the choices' length-normalized likelihoods.
std::optional<double> OptimizedConfidence(const ItemResult& optimized) {
  if (optimized.log_likelihoods.size() < 2) return std::nullopt;
  return LargestProbability(ChoiceScores(optimized, Metric::kPerToken));
}

struct Counts {
  size_t improved = 0, worsened = 0;
  double lift() const { return static_cast<double>(improved) - static_cast<double>(worsened); }
};

Counts Count(const std::vector<bool>& after, const std::vector<bool>& before) {
  Counts counts;
  for (size_t i = 0; i < after.size(); ++i) {
    counts.improved += after[i] && !before[i] ? 1 : 0;
    counts.worsened += !after[i] && before[i] ? 1 : 0;
  }
  return counts;
}

std::vector<GateThresholds> Candidates(const Results& optimized) {
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

}  // namespace

bool GateThresholds::any() const {
  return std::isfinite(distance) || std::isfinite(confidence) || optimized_confidence > 0;
}

bool GateThresholds::Skips(const ItemResult& optimized, const ItemResult& none) const {
  if (!optimized.neighbor_distances.empty() && optimized.neighbor_distances[0] > distance) return true;
  const std::optional<double> after = OptimizedConfidence(optimized);
  if (after && *after < optimized_confidence) return true;
  const std::optional<double> base = BaseConfidence(none);
  return base && *base >= confidence;
}

std::string GateThresholds::Describe() const {
  std::string text;
  if (std::isfinite(distance)) {
    text = absl::StrFormat("skip when the nearest neighbor is farther than %.4f", distance);
  }
  if (std::isfinite(confidence)) {
    absl::StrAppendFormat(&text, "%sskip when the model is at least %.0f %% sure", text.empty() ? "" : "; ",
                          100 * confidence);
  }
  if (optimized_confidence > 0) {
    absl::StrAppendFormat(&text, "%srevert when the optimized model is less than %.0f %% sure",
                          text.empty() ? "" : "; ", 100 * optimized_confidence);
  }
  return text;
}

void GateThresholds::WriteTo(v1::OptimizationOptions* options) const {
  if (!any()) return;
  v1::GateOptions& gate = *options->mutable_gate();
  if (std::isfinite(distance)) gate.set_max_neighbor_distance(distance);
  if (std::isfinite(confidence)) gate.set_max_base_confidence(confidence);
  if (optimized_confidence > 0) gate.set_min_optimized_confidence(optimized_confidence);
  gate.set_enabled(true);
}

Results Gated(const GateThresholds& gate, const Results& optimized, const Results& none) {
  Results answers = optimized;
  for (size_t i = 0; i < answers.size(); ++i) {
    if (!gate.Skips(optimized[i], none[i])) continue;
    answers[i] = none[i];
    answers[i].seconds = optimized[i].seconds;
  }
  return answers;
}

GateThresholds ChooseGate(const Results& optimized, const Results& none, const JudgeAnswers& right) {
  GateThresholds best;
  const std::vector<bool> before = right(none);
  const Counts ungated = Count(right(optimized), before);
  if (ungated.worsened < kHarmSpared) return best;  // No gate can spare that many.
  Counts least = ungated;
  for (const GateThresholds& gate : Candidates(optimized)) {
    const Counts counts = Count(right(Gated(gate, optimized, none)), before);
    const auto harm = static_cast<double>(counts.worsened);
    if (harm > kHarmKept * static_cast<double>(ungated.worsened) || counts.worsened + kHarmSpared > ungated.worsened ||
        counts.lift() < kLiftKept * ungated.lift()) {
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

}  // namespace c3po
