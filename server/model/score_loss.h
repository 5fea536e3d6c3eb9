#ifndef C3PO_SERVER_MODEL_SCORE_LOSS_H_
#define C3PO_SERVER_MODEL_SCORE_LOSS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/types/neighborhood_objective.h"

namespace c3po {

// The surrogate loss J as a function of scores, and its derivatives: arithmetic of the host, without a model. Case i
// has kernel weight K_i and answer g_i among its continuations; s_i(c) is the mean log-probability of continuation c's
// tokens.
//
//   answer:   J = sum_i K_i l_i / sum_i K_i,   l_i = -s_i(g_i)
//   choices:  the same with l_i = -log softmax_c(s_i)[g_i]; a case with one continuation has the answer's loss
//   pairs:    (ours) over the pairs of cases with the same choices and different answers a = g_i, b = g_j,
//               J = sum K_i K_j log(1 + exp(-(m_i - m_j))) / sum K_i K_j,   m_i = s_i(a) - s_i(b), m_j = s_j(a) -
//               s_j(b)
//             so that what is added to all cases' scores of a label cancels: J cannot fall by a bias. It is the
//             logistic pairwise loss of RankNet (Burges et al. 2005), whose 0-1 form is 1 - AUC of the margin. A case
//             without a partner does not count. Where there is no pair at all, the loss is `choices`.
//
// Two cases have the same choices where these have the same texts, or the same tokens in cases without texts, in any
// order. The trust region (ours) is added to each of them, with its weight `trust`:
//   + trust * sum_i K_i KL(p0_i || p_i) / sum_i K_i,   p_i = softmax_c(s_i)
// p0_i is the same of the model alone at the neighbor. For a case with one continuation p is (q, 1 - q), q = exp(s):
// the answer, by its tokens' geometric mean, against all else. That is at most the divergence over the vocabulary.
//
// Pure but for TakeBase; a value.
class ScoreLoss {
 public:
  using Scores = std::vector<std::vector<double>>;  // [case][continuation]

  // A pair as one of its cases sees it: places of continuations, each in its own case.
  struct Partner {
    int case_index;  // of the other case
    int own_other;   // the other's answer as a choice of this one
    int other;       // this one's answer as a choice of the other
    double weight;   // the pair's share of J; the shares of all pairs sum to 1
  };

  // Cases have at least one continuation each, `gold` in range, weights above 0.
  ScoreLoss(SurrogateLoss loss, double trust, absl::Span<const NeighborCase> cases);

  SurrogateLoss loss() const { return loss_; }  // kChoices for kPairs where there is no pair
  int64_t pairs() const { return pairs_; }      // as NeighborhoodObjective has it

  // Whether TakeBase has to come before Evaluate.
  bool needs_base() const { return trust_ > 0 && base_.empty(); }
  // Scores of the model alone.
  void TakeBase(const Scores& scores);

  // J. `derivatives`, of the shape of `scores`, receives dJ/ds. Those of a case over whose choices the loss or the
  // trust region is taken sum to 0: the answer's is minus the sum of the others'.
  double Evaluate(const Scores& scores, Scores& derivatives) const;

  double trust() const { return trust_; }
  int gold(size_t i) const { return gold_[i]; }
  const std::vector<double>& case_weights() const { return weights_; }             // K_i / sum K
  const std::vector<std::vector<Partner>>& partners() const { return partners_; }  // [case]; kPairs only
  Scores BaseProbabilities() const;                                                // p0; empty without a trust region

 private:
  void FindPairs(absl::Span<const NeighborCase> cases);
  double CaseLoss(size_t i, const Scores& scores, std::vector<double>& derivatives) const;

  SurrogateLoss loss_;
  double trust_;
  int64_t pairs_ = -1;
  std::vector<double> weights_;
  std::vector<int> gold_;
  std::vector<std::vector<Partner>> partners_;
  Scores base_;  // log p0; of a case with one continuation log q0
};

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_SCORE_LOSS_H_
