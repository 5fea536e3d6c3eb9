#ifndef C3PO_SERVER_PATHWAY_PATHWAY_OPTIMIZER_H_
#define C3PO_SERVER_PATHWAY_PATHWAY_OPTIMIZER_H_

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/types/optimization_options.h"
#include "index/types/pathway.h"
#include "server/pathway/kernels.h"
#include "server/types/neighborhood_objective.h"
#include "server/types/routing_override.h"

namespace c3po {

// A pathway of a reference, cut to the critical layers ([critical_layers, experts]), and how much it counts.
struct WeightedPathway {
  Pathway pathway;
  double weight = 1;  // kernel value, > 0 somewhere in a list
};

// One request's search for a better pathway. All pathways are [C critical layers, E experts], rows on the simplex.
struct OptimizationProblem {
  Pathway initial;                   // w at the query's last prompt token
  std::vector<int> critical_layers;  // ascending, C of them
  int core_experts = 0;              // per layer, those with the largest initial weight move; 0: all
  ApplicationRule rule = ApplicationRule::kEveryNewToken;
  NeighborhoodObjective* objective = nullptr;  // outlives the optimizer
  // Held-out neighbors, or null. Gradient descent takes the iterate with the least loss on them; outlives the
  // optimizer.
  NeighborhoodObjective* validation = nullptr;
  // ROUTER_SHIFT only: a shift of the critical layers' logits to begin at, [C, E]; empty: zero.
  Pathway initial_shift;
};

// A surrogate of C3PO section 3, advanced one unit of work at a time so that a scheduler can interleave it with other
// requests. A unit is one evaluation of an objective, or a step that needs none (mode finding's). The optimizer is host
// arithmetic and evaluates nothing itself:
//   Ask ▶ Evaluation::Run, or ModelRunner::EvaluateTogether with those of others ▶ Tell, until Tell says true
// Weights of experts outside the core set keep their initial value up to the row's normalization; rows stay on the
// simplex within 1e-5. Not thread-safe.
class PathwayOptimizer {
 public:
  virtual ~PathwayOptimizer() = default;
  // The evaluation that comes next; nothing where the next unit needs none. Changes nothing. Not once finished.
  virtual std::optional<Evaluation> Ask() const = 0;
  // Does the unit: with the result of what Ask says, or null where it says nothing. True when finished; do not call
  // again then. Internal: the one was given and the other is due; nothing has changed.
  absl::StatusOr<bool> Tell(const LossAndGradient* result);
  // What Ask says now and after Tell of each of these but the last, where no result decides what the next one asks for:
  // they may run side by side. TellAll is Tell of each result in turn; true: finished, with the last.
  virtual std::vector<Evaluation> AskAll() const;
  absl::StatusOr<bool> TellAll(absl::Span<const LossAndGradient> results);

  // The best pathway seen by the neighbors' loss, as weights and as the override that the application rule wants.
  const Pathway& pathway() const { return pathway_; }
  virtual RoutingOverride Override() const;
  // Neighbors' loss at the start, then after each step (kernel regression and mode finding: start and end).
  const std::vector<double>& losses() const { return losses_; }
  double best_loss() const { return best_loss_; }
  virtual int64_t steps_taken() const { return static_cast<int64_t>(losses_.size()) - 1; }
  std::optional<double> alpha() const { return alpha_; }
  // Gradient descent: the held-out loss at the start and after each step, and the iterate taken (0: the start).
  const std::vector<double>& validation_losses() const { return validation_losses_; }
  std::optional<int> selected_step() const { return selected_step_; }

 protected:
  explicit PathwayOptimizer(OptimizationProblem problem);
  // A unit that is an evaluation, with its result. True when finished.
  virtual absl::StatusOr<bool> Take(const LossAndGradient& result) = 0;
  // A unit that needs no evaluation; never finishes.
  virtual absl::Status Advance() { return absl::InternalError("the next unit is an evaluation"); }
  // J at weights `w`, under the application rule.
  Evaluation LossAt(const Pathway& w) const;
  // Notes `w` with loss `loss` if it is the best so far, by more than float32 leaves of a loss; whether it is.
  bool Consider(const Pathway& w, double loss);
  RoutingOverride OverrideFor(const Pathway& w) const;

  const OptimizationProblem problem_;
  Pathway pathway_;
  double best_loss_;
  std::vector<double> losses_;
  std::optional<double> alpha_;
  std::vector<double> validation_losses_;
  std::optional<int> selected_step_;
};

// Neighborhood gradient descent, on w = softmax(log w0 + theta) with theta = 0 at the start and outside the core set:
//   dJ/dtheta_e = w_e (dJ/dw_e - sum_j w_j dJ/dw_j)
// where the sum is 0 if the objective's weights are normalized. Under ROUTER_SHIFT theta itself is the shift, begins at
// initial_shift, and dJ/dtheta comes from the objective. Of the iterates, the one with the least loss is taken (on the
// validation objective where there is one), and of its displacement from the start `step_scale` times as much is
// applied. With `backtrack` an iterate with a larger loss is not kept: the next step goes from the one before half as
// far, in the same direction, and the rate is halved from there on; losses() are those of the iterates kept. With
// `patience` above 0 it ends after so many steps in a row whose loss is not below the least so far. InvalidArgument:
// negative steps, rate or patience, a scale outside (0, 1], an initial shift of another shape or rule.
absl::StatusOr<std::unique_ptr<PathwayOptimizer>> MakeGradientDescent(OptimizationProblem problem,
                                                                      GradientDescentOptions options);

// A vote of pathways (ours): gradient descent on each part of the neighbors by itself, as MakeGradientDescent of
// `problem` with that part's objective is, and the mean over the m parts of what they give,
//   s = (1/m) sum_j s_j  of router shifts,   w = (1/m) sum_j w_j  of weights, which is on the simplex as they are.
// Then J at the mean, over all neighbors, J = sum_j weight_j J_j / sum_j weight_j, and the loss of those that are held
// out. The mean is taken where the loss that it is judged by (held-out, where there is one) is below that of the start,
// else the start. losses(), validation_losses(): at the start and at the mean; selected_step(): 0, or 1 for the mean.
// All parts' next evaluations can run side by side (AskAll). problem.objective is not read. InvalidArgument:
// MakeGradientDescent's; no part, or a weight that is not positive.
struct VotePart {
  NeighborhoodObjective* objective = nullptr;  // outlives the optimizer
  double weight = 1;                           // of its neighbors' kernel values the sum, > 0
};
absl::StatusOr<std::unique_ptr<PathwayOptimizer>> MakePathwayVote(OptimizationProblem problem,
                                                                  const std::vector<VotePart>& parts,
                                                                  const GradientDescentOptions& options);

// Kernel regression: w^ = sum_i K_i w_i / sum_i K_i, then w = a w0 + (1 - a) w^ with a from {0, 0.1, ..., 1} minimizing
// J, of losses that rounding alone tells apart the largest a; or `alpha`, in [0, 1], if given, whatever J says.
absl::StatusOr<std::unique_ptr<PathwayOptimizer>> MakeKernelRegression(OptimizationProblem problem,
                                                                       std::vector<WeightedPathway> neighbors,
                                                                       std::optional<double> alpha = std::nullopt);

// Mode finding: mean shift in pathway space. `nearest(w)` returns references near w with their distances (Euclidean
// over the critical rows, ascending); w <- a w + (1 - a) sum K_i w_i / sum K_i, `iterations` times. The result is the
// last iterate, as in the paper; its loss is measured, not minimized.
struct PathwayAtDistance {
  Pathway pathway;
  double distance = 0;
};
struct ModeFindingOptions {
  int iterations = 10;
  double alpha = 0.5;  // in [0, 1]
  Kernel kernel = Kernel::kGaussian;
  double bandwidth = 0;  // <= 0: the farthest neighbor's distance, at each iteration
  std::function<absl::StatusOr<std::vector<PathwayAtDistance>>(const Pathway&)> nearest;
};
absl::StatusOr<std::unique_ptr<PathwayOptimizer>> MakeModeFinding(OptimizationProblem problem,
                                                                  ModeFindingOptions options);

// The `core_experts` largest entries of each row of `initial` (lowest index on ties; 0: all), as a 0/1 mask.
std::vector<bool> CoreExperts(const Pathway& initial, int core_experts);
// `candidate` where the mask allows movement, `initial` elsewhere: core entries are scaled so that each row keeps its
// sum.
Pathway RestrictToCore(const Pathway& initial, const Pathway& candidate, const std::vector<bool>& core);
// sum_i K_i w_i / sum_i K_i.
Pathway KernelMean(const std::vector<WeightedPathway>& neighbors);
// a w + (1 - a) v.
Pathway Blend(double a, const Pathway& w, const Pathway& v);
// softmax(log w + shift) per row, in double: w_e exp(shift_e) / sum_j w_j exp(shift_j). `shift` has the entries of w.
template <typename Number>
Pathway Shifted(const Pathway& w, const std::vector<Number>& shift) {
  Pathway result = w;
  for (int l = 0; l < w.layers; ++l) {
    const size_t begin = static_cast<size_t>(l) * static_cast<size_t>(w.experts), end = begin + w.experts;
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += w.weights[i] * std::exp(double{shift[i]});
    for (size_t i = begin; i < end; ++i) {
      result.weights[i] = static_cast<float>(w.weights[i] * std::exp(double{shift[i]}) / sum);
    }
  }
  return result;
}

}  // namespace c3po

#endif  // C3PO_SERVER_PATHWAY_PATHWAY_OPTIMIZER_H_
