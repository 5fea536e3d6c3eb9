#include "absl/status/status.h"
#include "index/base/status_macros.h"
#include "server/pathway/pathway_optimizer.h"

namespace c3po {
namespace {

constexpr int kGridSteps = 10;  // alpha = 1, 0.9, ..., 0

class KernelRegression final : public PathwayOptimizer {
 public:
  KernelRegression(OptimizationProblem problem, const std::vector<WeightedPathway>& neighbors,
                   std::optional<double> fixed_alpha)
      : PathwayOptimizer(std::move(problem)),
        fixed_alpha_(fixed_alpha),
        regressed_(RestrictToCore(problem_.initial, KernelMean(neighbors),
                                  CoreExperts(problem_.initial, problem_.core_experts))) {}

  // One grid point, from the query's own pathway (alpha = 1) towards the neighbors' mean, so that a tie changes least.
  absl::StatusOr<bool> Step() override {
    if (fixed_alpha_) return StepFixed();
    const double alpha = 1 - static_cast<double>(next_) / kGridSteps;
    const Pathway candidate = Blend(alpha, problem_.initial, regressed_);
    C3PO_ASSIGN_OR_RETURN(const double loss, Evaluate(candidate));
    if (next_ == 0) losses_.push_back(loss);
    if (loss < best_loss_) alpha_ = alpha;
    Consider(candidate, loss);
    if (++next_ <= kGridSteps) return false;
    losses_.push_back(best_loss_);
    return true;
  }

 private:
  // The loss at the start, then at the fixed blend, which is taken.
  absl::StatusOr<bool> StepFixed() {
    const Pathway candidate = losses_.empty() ? problem_.initial : Blend(*fixed_alpha_, problem_.initial, regressed_);
    C3PO_ASSIGN_OR_RETURN(const double loss, Evaluate(candidate));
    losses_.push_back(loss);
    if (losses_.size() == 1) return false;
    alpha_ = fixed_alpha_;
    best_loss_ = loss;
    pathway_ = candidate;
    return true;
  }

  const std::optional<double> fixed_alpha_;
  const Pathway regressed_;
  int next_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PathwayOptimizer>> MakeKernelRegression(OptimizationProblem problem,
                                                                       std::vector<WeightedPathway> neighbors,
                                                                       std::optional<double> alpha) {
  if (neighbors.empty()) return absl::InvalidArgumentError("kernel regression needs at least one neighbor");
  for (const WeightedPathway& neighbor : neighbors) {
    if (neighbor.pathway.weights.size() != problem.initial.weights.size()) {
      return absl::InvalidArgumentError("a neighbor's pathway has another shape than the query's");
    }
  }
  if (alpha && !(*alpha >= 0 && *alpha <= 1)) return absl::InvalidArgumentError("alpha must be in [0, 1]");
  return std::make_unique<KernelRegression>(std::move(problem), neighbors, alpha);
}

}  // namespace c3po
