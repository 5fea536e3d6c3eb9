#ifndef C3PO_SERVER_TYPES_NEIGHBORHOOD_OBJECTIVE_H_
#define C3PO_SERVER_TYPES_NEIGHBORHOOD_OBJECTIVE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "index/types/optimization_terms.h"
#include "server/types/routing_override.h"

namespace c3po {

// The surrogate loss that a pathway is judged by:
//   J(w) = sum_i K_i l(f(x_i, w), y_i) / sum_i K_i     (C3PO section 3)
// over the neighbors it was made from, or a loss over pairs of them, and a trust region (ours;
// server/model/score_loss.h has the formulas). Owned by one request; calls come from the engine thread.
class NeighborhoodObjective {
 public:
  virtual ~NeighborhoodObjective() = default;
  // J at `routing`. `gradient`, unless null, receives dJ/d(routing.values), the same shape; entries outside the top-k
  // are 0 for weights. Internal: non-finite loss.
  virtual absl::StatusOr<double> Evaluate(const RoutingOverride& routing, Pathway* gradient) = 0;
  // After the last Evaluate: how many neighbors' answer had the largest length-normalized log-likelihood of their
  // continuations (the first of equals wins). -1: not counted.
  virtual int64_t correct_choices() const { return -1; }
  // Pairs of neighbors that the loss compares. 0: the objective was to be kPairs, and no two neighbors have the same
  // choices and different answers, so that it is kChoices. -1: it is not over pairs.
  virtual int64_t pairs() const { return -1; }
  // Whether the model divides the selected weights by their sum. J then does not change when a layer's weights are all
  // multiplied by one number, so that sum_e w_e dJ/dw_e is exactly 0 in each layer.
  virtual bool weights_are_normalized() const { return false; }
  // Positions that an evaluation runs, at least 1: what it costs beside others.
  virtual int64_t rows() const { return 1; }
};

struct LossAndGradient {
  double loss = 0;
  Pathway gradient;  // empty unless it was asked for
};

// A value of J that somebody waits for. A plain value; the objective outlives it.
struct Evaluation {
  NeighborhoodObjective* objective = nullptr;
  RoutingOverride routing;
  bool want_gradient = false;

  // Runs it by itself; see ModelRunner::EvaluateTogether.
  absl::StatusOr<LossAndGradient> Run() const {
    LossAndGradient result;
    const absl::StatusOr<double> loss = objective->Evaluate(routing, want_gradient ? &result.gradient : nullptr);
    if (!loss.ok()) return loss.status();
    result.loss = *loss;
    return result;
  }
};

// A labelled neighbor, tokenized.
struct NeighborCase {
  std::string reference_id;
  std::vector<int32_t> prompt;                      // at least one token
  std::vector<std::vector<int32_t>> continuations;  // the answer alone, or all choices; none empty
  int gold = 0;                                     // index of the answer among continuations
  double kernel_weight = 1;                         // K_i > 0, not normalized
  // Of the continuations: what tells choices of two neighbors apart. Empty: their tokens do.
  std::vector<std::string> texts = {};
};

// Whether a loss compares an answer with the other choices, so that cases have these as continuations.
inline bool ReadsChoices(SurrogateLoss loss) { return loss != SurrogateLoss::kAnswer; }

// What a pathway moves of a neighbor.
struct MovingPart {
  int first_layer = 0;       // the first critical MoE layer: below it nothing moves
  int prompt_positions = 1;  // the last so many tokens of the prompt, >= 1; of a shorter prompt all
};

// What a reference never recomputes: hidden states entering the first critical layer at the positions that move, keys
// and values of all earlier positions. Opaque outside server/model; kept alive by whoever holds it.
class NeighborState {
 public:
  virtual ~NeighborState() = default;
};

struct ObjectiveSpec {
  std::vector<NeighborCase> cases;                           // at least one
  std::vector<std::shared_ptr<const NeighborState>> states;  // one per case, from ModelRunner::PrepareNeighbor
  std::vector<int> critical_layers;                          // ascending
  ApplicationRule rule = ApplicationRule::kEveryNewToken;
  SurrogateLoss loss = SurrogateLoss::kAnswer;
  // Of what every expert of the first critical layer gives at every row, which no step changes. Where it would be more,
  // that layer is computed anew in each step, as those above it are.
  int64_t remembered_bytes_max = int64_t{128} << 20;
  double trust = 0;  // >= 0: weight of the trust region
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_NEIGHBORHOOD_OBJECTIVE_H_
