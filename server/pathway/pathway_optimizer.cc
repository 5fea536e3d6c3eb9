#include "server/pathway/pathway_optimizer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "index/base/status_macros.h"

namespace c3po {
namespace {

// Weights below this have no meaningful logarithm in float32.
constexpr float kWeightMin = 1e-12f;

// Relative, of a loss: log-probabilities are float32.
constexpr double kRounding = 1e-6;

}  // namespace

PathwayOptimizer::PathwayOptimizer(OptimizationProblem problem)
    : problem_(std::move(problem)), pathway_(problem_.initial), best_loss_(std::numeric_limits<double>::infinity()) {}

RoutingOverride PathwayOptimizer::OverrideFor(const Pathway& w) const {
  RoutingOverride routing{OverrideKindOf(problem_.rule), problem_.critical_layers, w};
  if (routing.kind == RoutingOverride::Kind::kLogitShift) {
    for (size_t i = 0; i < w.weights.size(); ++i) {
      routing.values.weights[i] =
          std::log(std::max(w.weights[i], kWeightMin)) - std::log(std::max(problem_.initial.weights[i], kWeightMin));
    }
  }
  return routing;
}

RoutingOverride PathwayOptimizer::Override() const { return OverrideFor(pathway_); }

Evaluation PathwayOptimizer::LossAt(const Pathway& w) const {
  return {problem_.objective, OverrideFor(w), /*want_gradient=*/false};
}

absl::StatusOr<bool> PathwayOptimizer::Tell(const LossAndGradient* result) {
  if (result != nullptr) return Take(*result);
  C3PO_RETURN_IF_ERROR(Advance());
  return false;
}

std::vector<Evaluation> PathwayOptimizer::AskAll() const {
  std::optional<Evaluation> one = Ask();
  return one ? std::vector<Evaluation>{*std::move(one)} : std::vector<Evaluation>();
}

absl::StatusOr<bool> PathwayOptimizer::TellAll(absl::Span<const LossAndGradient> results) {
  bool finished = false;
  for (const LossAndGradient& result : results) {
    if (finished) return absl::InternalError("a result after the optimizer has finished");
    C3PO_ASSIGN_OR_RETURN(finished, Tell(&result));
  }
  return finished;
}

bool PathwayOptimizer::Consider(const Pathway& w, double loss) {
  const double below = std::isinf(best_loss_) ? best_loss_ : best_loss_ - kRounding * std::abs(best_loss_);
  if (!(loss < below)) return false;  // NaN is not better.
  best_loss_ = loss;
  pathway_ = w;
  return true;
}

std::vector<bool> CoreExperts(const Pathway& initial, int core_experts) {
  std::vector<bool> core(initial.weights.size(), core_experts <= 0 || core_experts >= initial.experts);
  if (!core.empty() && core[0]) return core;
  std::vector<int> order(initial.experts);
  for (int l = 0; l < initial.layers; ++l) {
    const auto row = initial.Row(l);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    for (int i = 0; i < core_experts; ++i) core[size_t(l) * initial.experts + order[i]] = true;
  }
  return core;
}

Pathway RestrictToCore(const Pathway& initial, const Pathway& candidate, const std::vector<bool>& core) {
  Pathway result = initial;
  for (int l = 0; l < initial.layers; ++l) {
    const size_t begin = size_t(l) * initial.experts;
    double mass = 0, proposed = 0;
    for (size_t i = begin; i < begin + initial.experts; ++i) {
      if (!core[i]) continue;
      mass += initial.weights[i];
      proposed += candidate.weights[i];
    }
    if (!(proposed > 0)) continue;
    for (size_t i = begin; i < begin + initial.experts; ++i) {
      if (core[i]) result.weights[i] = static_cast<float>(candidate.weights[i] * (mass / proposed));
    }
  }
  return result;
}

Pathway KernelMean(const std::vector<WeightedPathway>& neighbors) {
  Pathway mean(neighbors.front().pathway.layers, neighbors.front().pathway.experts);
  double total = 0;
  for (const WeightedPathway& neighbor : neighbors) total += neighbor.weight;
  for (size_t i = 0; i < mean.weights.size(); ++i) {
    double sum = 0;
    for (const WeightedPathway& neighbor : neighbors) sum += neighbor.weight * neighbor.pathway.weights[i];
    mean.weights[i] = static_cast<float>(sum / total);
  }
  return mean;
}

Pathway Blend(double a, const Pathway& w, const Pathway& v) {
  Pathway result = w;
  for (size_t i = 0; i < w.weights.size(); ++i) {
    result.weights[i] = static_cast<float>(a * w.weights[i] + (1 - a) * v.weights[i]);
  }
  return result;
}

}  // namespace c3po
