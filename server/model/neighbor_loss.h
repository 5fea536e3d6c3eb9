#ifndef C3PO_SERVER_MODEL_NEIGHBOR_LOSS_H_
#define C3PO_SERVER_MODEL_NEIGHBOR_LOSS_H_

#include <memory>
#include <vector>

#include "absl/types/span.h"
#include "server/compute/backend.h"
#include "server/compute/whole_passes.h"
#include "server/model/moe_model.h"
#include "server/model/neighbor_rows.h"
#include "server/model/score_loss.h"

namespace c3po {

// J(w) and dJ/dw over a fixed set of neighbors, from their cached states: only the moving rows of all neighbors run,
// through the layers from the first critical one to the LM head and back, as one batch (NeighborPass), together with
// the rows of other objectives that are evaluated at the same time. Shared experts and dense layers above the first
// critical one are part of the model that w moves, not of w. What the loss is of the scores s_i(c) = 1/m_c sum_t
// log p(y_{c,t} | x_i, w), m_c the number of choice c's tokens, ScoreLoss has. Where every neighbor chooses among
// one-token answers, and the loss compares these, the LM head's denominator cancels, and it is read at the choices'
// tokens only. A trust region needs the model's own scores at the neighbors: the first evaluation finds them by one
// pass up before its own, under a shift of 0.
class NeighborLoss final : public NeighborhoodObjective {
 public:
  // `model` outlives the objective. InvalidArgument: no case, an index out of range, a state of another first layer.
  static absl::StatusOr<std::unique_ptr<NeighborLoss>> Create(const MoeModel& model, const ObjectiveSpec& spec);

  // See ModelRunner. Those that want a gradient are one pass, those that do not are another, which has no way back;
  // objectives that are not NeighborLosses of `model` run alone. Where the backend runs passes as one piece of work
  // (WholePasses), and Advance may spend what one costs, it does; the numbers are those of the pieces.
  static std::unique_ptr<EvaluationRun> NewRun(const MoeModel& model, std::vector<Evaluation> evaluations);

  absl::StatusOr<double> Evaluate(const RoutingOverride& routing, Pathway* gradient) override;
  int64_t correct_choices() const override { return correct_choices_; }
  int64_t pairs() const override { return loss_.pairs(); }
  bool weights_are_normalized() const override { return model_.config().norm_topk_prob; }
  int64_t rows() const override { return rows_.rows(); }

 private:
  struct Target {
    int case_index;
    int continuation;
  };
  class Pass;
  class Run;

  NeighborLoss(const MoeModel& model, const ObjectiveSpec& spec);

  void ChooseTargets(const ObjectiveSpec& spec);
  void MakeReady();
  absl::Status Check(const RoutingOverride& routing) const;
  // From log-probabilities of the targets: the mean ones of the continuations, and the model's own.
  ScoreLoss::Scores ScoresOf(const std::vector<float>& logprobs) const;
  void TakeBase(const std::vector<float>& logprobs);
  // Likewise: J, and dJ/dlogp of each. What several continuations share stands at the first of their targets, and is 0
  // where it cancels.
  double Loss(const std::vector<float>& logprobs, std::vector<float>& dlogprobs);
  std::vector<float> TargetDerivatives(const ScoreLoss::Scores& dscores) const;

  const MoeModel& model_;
  ScoreLoss loss_;
  // Stands for all that an evaluation reads and does not change, for backends that remember passes.
  const std::shared_ptr<const void> identity_ = std::make_shared<char>();
  NeighborRows rows_;
  std::shared_ptr<const TargetTokens> head_;
  std::shared_ptr<const TargetLoss> device_loss_;  // null where the backend runs no whole passes, and until `ready_`
  bool ready_ = false;                             // false: TakeBase has to come first
  int64_t correct_choices_ = -1;
  std::vector<std::vector<int>> case_lengths_;  // tokens of each continuation
  std::vector<Target> targets_;                 // of head_
  std::vector<size_t> first_same_;              // of each target, the first one of the same row and token
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_NEIGHBOR_LOSS_H_
