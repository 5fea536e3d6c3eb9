#include "absl/status/status.h"
#include "index/base/status_macros.h"
#include "server/pathway/pathway_optimizer.h"

namespace c3po {
namespace {

class ModeFinding final : public PathwayOptimizer {
 public:
  ModeFinding(OptimizationProblem problem, ModeFindingOptions options)
      : PathwayOptimizer(std::move(problem)),
        options_(std::move(options)),
        core_(CoreExperts(problem_.initial, problem_.core_experts)) {
    alpha_ = options_.alpha;
  }

  // The loss is measured at the start and, if anything moved since, at the end.
  std::optional<Evaluation> Ask() const override {
    if (Moves()) return std::nullopt;
    return LossAt(pathway_);
  }

 private:
  absl::StatusOr<bool> Take(const LossAndGradient& result) override {
    if (Moves()) return absl::InternalError("the next unit needs no evaluation");
    best_loss_ = result.loss;
    losses_.push_back(result.loss);
    return iterations_done_ == options_.iterations;
  }

  // Whether the next unit is an iteration.
  bool Moves() const { return !losses_.empty() && iterations_done_ < options_.iterations; }

  absl::Status Advance() override {
    if (!Moves()) return PathwayOptimizer::Advance();
    ++iterations_done_;
    C3PO_ASSIGN_OR_RETURN(std::vector<PathwayAtDistance> near, options_.nearest(pathway_));
    if (near.empty()) return absl::OkStatus();
    std::vector<double> distances;
    for (const PathwayAtDistance& neighbor : near) distances.push_back(neighbor.distance);
    const std::vector<double> kernel = KernelValues(options_.kernel, distances, options_.bandwidth);
    std::vector<WeightedPathway> weighted;
    for (size_t i = 0; i < near.size(); ++i) weighted.push_back({std::move(near[i].pathway), kernel[i]});
    pathway_ = RestrictToCore(problem_.initial, Blend(options_.alpha, pathway_, KernelMean(weighted)), core_);
    return absl::OkStatus();
  }

  const ModeFindingOptions options_;
  const std::vector<bool> core_;
  int iterations_done_ = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PathwayOptimizer>> MakeModeFinding(OptimizationProblem problem,
                                                                  ModeFindingOptions options) {
  if (!options.nearest) return absl::InvalidArgumentError("mode finding needs a search of pathways");
  if (options.iterations < 0) return absl::InvalidArgumentError("steps must be at least 0");
  if (!(options.alpha >= 0 && options.alpha <= 1)) return absl::InvalidArgumentError("alpha must be in [0, 1]");
  return std::make_unique<ModeFinding>(std::move(problem), std::move(options));
}

}  // namespace c3po
