// Backends that run a pass as one piece of work compute the same derivatives, operation by operation
// (server/compute/cuda/target_loss.cu).
#include "server/model/score_loss.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>

namespace c3po {
namespace {

// Where a mean log-probability counts as certain, about what float32 tells from 0.
constexpr double kCertain = -1e-7;

// What tells choices apart: a text or tokens.
using ChoiceName = std::pair<std::string, std::vector<int32_t>>;

ChoiceName NameOf(const NeighborCase& neighbor, size_t continuation) {
  if (neighbor.texts.empty()) return {"", neighbor.continuations[continuation]};
  return {neighbor.texts[continuation], {}};
}

struct NamedChoices {
  explicit NamedChoices(const NeighborCase& neighbor) : answer(NameOf(neighbor, static_cast<size_t>(neighbor.gold))) {
    for (size_t c = 0; c < neighbor.continuations.size(); ++c) {
      places.try_emplace(NameOf(neighbor, c), static_cast<int>(c));  // Of equal ones the first.
    }
  }
  bool SameAs(const NamedChoices& other) const {
    const auto same_name = [](const auto& a, const auto& b) { return a.first == b.first; };
    return std::equal(places.begin(), places.end(), other.places.begin(), other.places.end(), same_name);
  }
  std::map<ChoiceName, int> places;
  ChoiceName answer;
};

// log(1 + exp(x)).
double Softplus(double x) { return x > 0 ? x + std::log1p(std::exp(-x)) : std::log1p(std::exp(x)); }

double LogSumExp(const std::vector<double>& values) {
  const double top = *std::max_element(values.begin(), values.end());
  double sum = 0;
  for (const double value : values) sum += std::exp(value - top);
  return top + std::log(sum);
}

// log p, or log q of a case with one continuation.
std::vector<double> LogProbabilities(const std::vector<double>& scores) {
  if (scores.size() == 1) return {std::min(scores[0], kCertain)};
  std::vector<double> result;
  const double normalizer = LogSumExp(scores);
  for (const double score : scores) result.push_back(score - normalizer);
  return result;
}

double Divergence(const std::vector<double>& base, const std::vector<double>& now) {
  double sum = 0;
  for (size_t c = 0; c < base.size(); ++c) sum += std::exp(base[c]) * (base[c] - now[c]);
  if (base.size() > 1) return sum;
  const double rest = -std::expm1(base[0]);
  return sum + rest * (std::log(rest) - std::log(-std::expm1(now[0])));
}

}  // namespace

ScoreLoss::ScoreLoss(SurrogateLoss loss, double trust, absl::Span<const NeighborCase> cases)
    : loss_(loss), trust_(trust), partners_(cases.size()) {
  double total = 0;
  for (const NeighborCase& neighbor : cases) total += neighbor.kernel_weight;
  for (const NeighborCase& neighbor : cases) {
    weights_.push_back(neighbor.kernel_weight / total);
    gold_.push_back(neighbor.gold);
  }
  if (loss_ != SurrogateLoss::kPairs) return;
  FindPairs(cases);
  if (pairs_ == 0) loss_ = SurrogateLoss::kChoices;
}

void ScoreLoss::FindPairs(absl::Span<const NeighborCase> cases) {
  const std::vector<NamedChoices> named(cases.begin(), cases.end());
  pairs_ = 0;
  double total = 0;
  for (size_t i = 0; i < named.size(); ++i) {
    for (size_t j = 0; j < named.size(); ++j) {
      if (named[i].answer == named[j].answer || !named[i].SameAs(named[j])) continue;
      const double weight = weights_[i] * weights_[j];
      partners_[i].push_back(
          {static_cast<int>(j), named[i].places.at(named[j].answer), named[j].places.at(named[i].answer), weight});
      if (i < j) {
        ++pairs_;
        total += weight;
      }
    }
  }
  for (std::vector<Partner>& partners : partners_) {
    for (Partner& partner : partners) partner.weight /= total;
  }
}

void ScoreLoss::TakeBase(const Scores& scores) {
  base_.clear();
  for (const std::vector<double>& of_case : scores) base_.push_back(LogProbabilities(of_case));
}

ScoreLoss::Scores ScoreLoss::BaseProbabilities() const {
  Scores probabilities = base_;
  for (std::vector<double>& of_case : probabilities) {
    for (double& value : of_case) value = std::exp(value);
  }
  return probabilities;
}

double ScoreLoss::Evaluate(const Scores& scores, Scores& derivatives) const {
  derivatives.resize(scores.size());
  double total = 0;
  for (size_t i = 0; i < scores.size(); ++i) total += CaseLoss(i, scores, derivatives[i]);
  return total;
}

// What a case has in J: of its pairs those with later cases. The answer's derivative is minus the sum of the others'
// rather than its probability less 1, which rounding would leave nothing of near 1.
double ScoreLoss::CaseLoss(size_t i, const Scores& scores, std::vector<double>& derivatives) const {
  const std::vector<double>& own = scores[i];
  const double weight = weights_[i];
  const auto gold = static_cast<size_t>(gold_[i]);
  const bool alone = own.size() == 1, contrasts = loss_ == SurrogateLoss::kChoices && !alone;
  derivatives.assign(own.size(), 0.0);
  double loss = 0;
  for (const Partner& partner : partners_[i]) {
    const auto j = static_cast<size_t>(partner.case_index);
    const double margin = (own[gold] - own[static_cast<size_t>(partner.own_other)]) +
                          (scores[j][static_cast<size_t>(gold_[j])] - scores[j][static_cast<size_t>(partner.other)]);
    if (i < j) loss += partner.weight * Softplus(-margin);
    derivatives[static_cast<size_t>(partner.own_other)] += partner.weight / (1 + std::exp(margin));
  }
  if (!alone && (contrasts || trust_ > 0)) {
    const double top = *std::max_element(own.begin(), own.end());
    double sum = 0;
    for (const double score : own) sum += std::exp(score - top);
    for (size_t c = 0; c < own.size(); ++c) {
      const double exponential = std::exp(own[c] - top);
      if (contrasts) derivatives[c] = weight * exponential / sum;
      if (trust_ > 0) derivatives[c] += trust_ * weight * (exponential / sum - std::exp(base_[i][c]));
    }
    if (contrasts) loss += weight * (top + std::log(sum) - own[gold]);
  }
  double of_gold = 0;
  for (size_t c = 0; c < own.size(); ++c) {
    if (c != gold) of_gold -= derivatives[c];
  }
  if (loss_ == SurrogateLoss::kAnswer || (loss_ == SurrogateLoss::kChoices && alone)) {
    loss -= weight * own[gold];
    of_gold -= weight;
  }
  if (trust_ > 0) {
    loss += trust_ * weight * Divergence(base_[i], LogProbabilities(own));
    if (alone) {
      const double score = std::min(own[0], kCertain);
      of_gold += trust_ * weight * (std::exp(score) - std::exp(base_[i][0])) / -std::expm1(score);
    }
  }
  derivatives[gold] = of_gold;
  return loss;
}

}  // namespace c3po
