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

  // Grid points from the query's own pathway (alpha = 1) towards the neighbors' mean, so that a tie changes least. With
  // a fixed alpha: the start, then the fixed blend, which is taken.
  std::optional<Evaluation> Ask() const override { return LossAt(Candidate()); }

 private:
  absl::StatusOr<bool> Take(const LossAndGradient& result) override {
    if (fixed_alpha_) return TakeFixed(result.loss);
    const Pathway candidate = Candidate();
    if (next_ == 0) losses_.push_back(result.loss);
    if (Consider(candidate, result.loss)) alpha_ = Alpha();
    if (++next_ <= kGridSteps) return false;
    losses_.push_back(best_loss_);
    return true;
  }

  double Alpha() const {
    if (fixed_alpha_) return next_ == 0 ? 1 : *fixed_alpha_;
    return 1 - static_cast<double>(next_) / kGridSteps;
  }
  Pathway Candidate() const { return Blend(Alpha(), problem_.initial, regressed_); }

  bool TakeFixed(double loss) {
    losses_.push_back(loss);
    if (next_++ == 0) return false;
    alpha_ = fixed_alpha_;
    best_loss_ = loss;
    pathway_ = Blend(*fixed_alpha_, problem_.initial, regressed_);
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
