// Neighborhood gradient descent (C3PO section 3). The step is taken on theta, where the simplex needs no projection.

#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/pathway/adam.h"
#include "server/pathway/pathway_optimizer.h"

namespace c3po {
namespace {

class GradientDescent final : public PathwayOptimizer {
 public:
  GradientDescent(OptimizationProblem problem, GradientDescentOptions options)
      : PathwayOptimizer(std::move(problem)),
        options_(options),
        core_(CoreExperts(problem_.initial, problem_.core_experts)),
        rate_(options.learning_rate),
        start_(problem_.initial_shift.weights.begin(), problem_.initial_shift.weights.end()),
        adam_(problem_.initial.weights.size()) {
    start_.resize(problem_.initial.weights.size());
    theta_ = best_theta_ = start_;
    weights_ = Weights();
    selected_step_ = 0;
  }

  // The objective at the iterate, then, of an iterate that is kept, the held-out loss.
  std::optional<Evaluation> Ask() const override {
    if (measured_) return Evaluation{problem_.validation, Routing(weights_), /*want_gradient=*/false};
    return Evaluation{problem_.objective, Routing(weights_), /*want_gradient=*/!last()};
  }

  RoutingOverride Override() const override { return Routing(pathway_); }

 private:
  absl::StatusOr<bool> Take(const LossAndGradient& result) override {
    if (measured_) {
      const LossAndGradient at_iterate = *std::move(measured_);
      measured_.reset();
      validation_losses_.push_back(result.loss);
      return Keep(at_iterate, result.loss);
    }
    if (options_.backtrack && result.loss > kept_loss_) return TakeBack();
    kept_loss_ = result.loss;
    losses_.push_back(result.loss);
    if (problem_.validation == nullptr) return Keep(result, result.loss);
    measured_ = result;
    return false;
  }

  bool last() const { return steps_done_ == options_.steps; }

  // At the iterate that was measured last.
  bool Ends() const { return last() || (options_.patience > 0 && steps_done_ - *selected_step_ >= options_.patience); }

  // The iterate as it was measured, and the loss that it is judged by.
  bool Keep(const LossAndGradient& measured, double judged) {
    if (judged < least_) {
      least_ = judged;
      best_theta_ = theta_;
      best_loss_ = measured.loss;
      pathway_ = weights_;
      selected_step_ = steps_done_;
    }
    if (Ends()) return Finish();
    kept_theta_ = theta_;
    Move(ThetaGradient(measured.gradient));
    weights_ = Weights();
    ++steps_done_;
    return false;
  }

  bool TakeBack() {
    losses_.push_back(losses_.back());
    if (problem_.validation != nullptr) validation_losses_.push_back(validation_losses_.back());
    rate_ /= 2;
    for (size_t i = 0; i < theta_.size(); ++i) theta_[i] = (kept_theta_[i] + theta_[i]) / 2;
    if (Ends()) return Finish();
    weights_ = Weights();
    ++steps_done_;
    return false;
  }

  // Applies the step scale to the iterate taken.
  bool Finish() {
    theta_ = best_theta_;
    if (options_.step_scale == 1 || *selected_step_ == 0) return true;
    for (size_t i = 0; i < theta_.size(); ++i) theta_[i] = start_[i] + options_.step_scale * (theta_[i] - start_[i]);
    pathway_ = Weights();
    return true;
  }

  Pathway Weights() const { return Shifted(problem_.initial, theta_); }

  RoutingOverride Routing(const Pathway& weights) const {
    if (OverrideKindOf(problem_.rule) == RoutingOverride::Kind::kWeights) return OverrideFor(weights);
    Pathway shift(weights.layers, weights.experts);
    for (size_t i = 0; i < theta_.size(); ++i) shift.weights[i] = static_cast<float>(theta_[i]);
    return {RoutingOverride::Kind::kLogitShift, problem_.critical_layers, std::move(shift)};
  }

  // The mean of a normalized layer is exactly 0. Computed, it would be what rounding left of it, and give experts whose
  // gradient is 0 one of 1e-9, which Adam turns into a step of the full rate.
  std::vector<double> ThetaGradient(const Pathway& gradient) const {
    const Pathway& weights = weights_;
    std::vector<double> result(theta_.size());
    const bool is_shift = OverrideKindOf(problem_.rule) == RoutingOverride::Kind::kLogitShift;
    const bool normalized = problem_.objective->weights_are_normalized();
    for (int l = 0; l < weights.layers; ++l) {
      const size_t begin = size_t(l) * weights.experts;
      double mean = 0;
      for (size_t i = begin; !normalized && i < begin + weights.experts; ++i) {
        mean += double{weights.weights[i]} * gradient.weights[i];
      }
      for (size_t i = begin; i < begin + weights.experts; ++i) {
        if (!core_[i]) continue;
        result[i] = is_shift ? gradient.weights[i] : weights.weights[i] * (gradient.weights[i] - mean);
      }
    }
    return result;
  }

  void Move(const std::vector<double>& gradient) {
    double rate = rate_;
    if (options_.step_rule == StepRule::kAdam) return MoveAdam(gradient);
    if (options_.step_rule == StepRule::kNormalized) {
      double norm = 0;
      for (double g : gradient) norm += g * g;
      if (!(norm > 0)) return;
      rate /= std::sqrt(norm);
    }
    for (size_t i = 0; i < theta_.size(); ++i) theta_[i] -= rate * gradient[i];
  }

  void MoveAdam(const std::vector<double>& gradient) {
    const std::vector<double>& direction = adam_.Direction(gradient);
    for (size_t i = 0; i < theta_.size(); ++i) theta_[i] -= rate_ * direction[i];
  }

  const GradientDescentOptions options_;
  const std::vector<bool> core_;
  double rate_;
  std::vector<double> start_, theta_, best_theta_, kept_theta_;
  Pathway weights_;                          // at theta_
  std::optional<LossAndGradient> measured_;  // of the iterate, while its held-out loss is waited for
  double kept_loss_ = std::numeric_limits<double>::infinity();
  Adam adam_;
  double least_ = std::numeric_limits<double>::infinity();
  int steps_done_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PathwayOptimizer>> MakeGradientDescent(OptimizationProblem problem,
                                                                      GradientDescentOptions options) {
  if (options.steps < 0)
    return absl::InvalidArgumentError(absl::StrCat("steps is ", options.steps, ", must be at least 0"));
  if (options.patience < 0)
    return absl::InvalidArgumentError(absl::StrCat("patience is ", options.patience, ", must be at least 0"));
  if (!(options.learning_rate >= 0) || !std::isfinite(options.learning_rate)) {
    return absl::InvalidArgumentError("learning_rate must be a finite number, at least 0");
  }
  if (!(options.step_scale > 0 && options.step_scale <= 1)) {
    return absl::InvalidArgumentError("step_scale must be in (0, 1]");
  }
  if (const size_t size = problem.initial_shift.weights.size();
      size != 0 && (size != problem.initial.weights.size() || problem.rule != ApplicationRule::kRouterShift)) {
    return absl::InvalidArgumentError("an initial shift needs the critical layers' shape and the rule ROUTER_SHIFT");
  }
  return std::make_unique<GradientDescent>(std::move(problem), options);
}

}  // namespace c3po
