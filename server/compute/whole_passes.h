#ifndef C3PO_SERVER_COMPUTE_WHOLE_PASSES_H_
#define C3PO_SERVER_COMPUTE_WHOLE_PASSES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "index/types/optimization_terms.h"
#include "server/compute/backend.h"

namespace c3po {

// How an objective weighs the log-probabilities of its targets. Notation: n cases, C continuations of all cases, those
// of a case side by side, T targets of all continuations, those of a continuation side by side. J as ScoreLoss has it
// (server/model/score_loss.h), of s_c, the mean log-probability of continuation c's targets.
struct ContinuationLoss {
  SurrogateLoss loss = SurrogateLoss::kAnswer;  // kPairs: there are pairs
  absl::Span<const double> case_weights;        // [n]
  absl::Span<const int32_t> case_gold;          // [n], of the case's continuations
  absl::Span<const int32_t> case_begin;         // [n + 1], continuations
  absl::Span<const int32_t> target_begin;       // [C + 1], targets
  absl::Span<const int32_t> first_same;         // [T], the first target of the same row and token

  // kPairs: each pair stands with both of its cases, those of a case side by side, Q in all. Of case i and a partner j,
  // by their places among the C continuations: j's answer as a choice of i, j's answer, i's answer as a choice of j.
  struct Partner {
    int32_t own_other, answer, other;
  };
  absl::Span<const int32_t> pair_begin;   // [n + 1], partners
  absl::Span<const Partner> partners;     // [Q]
  absl::Span<const double> pair_weights;  // [Q], each pair's share of the loss

  double trust = 0;                             // weight of the trust region
  absl::Span<const double> base_probabilities;  // [C], p^0; empty where there is no trust region
};

// A ContinuationLoss where a backend computes. Opaque.
class TargetLoss {
 public:
  virtual ~TargetLoss() = default;
};

// What a backend offers besides its blocks when it runs a pass over objectives as one piece of work: forward, loss and
// backward, with nothing in between for the host. Engine thread only, as the backend is.
class WholePasses {
 public:
  virtual ~WholePasses() = default;

  virtual std::shared_ptr<const TargetLoss> NewTargetLoss(const ContinuationLoss& loss) = 0;
  // dJ/dlogp, float32 [1, sum of T], from what TargetLogprobs gave for the objectives of these losses, in their order.
  // What the targets of one row and token share stands at the first of them; it is 0 where it cancels to within 1e-12
  // of the magnitudes that are added. Sums are in double precision.
  virtual OwnedMatrix LossGradient(absl::Span<const TargetLoss* const> losses, const OwnedMatrix& logprobs) = 0;
  // As Backend::TargetLogprobsBackward.
  virtual OwnedMatrix TargetLogprobsBackward(absl::Span<const TargetTokens* const> targets, const Tape& tape,
                                             const OwnedMatrix& dlogprobs) = 0;

  struct Pass {
    // One object per objective, which lives as long as what the blocks read of the objective, such as its trees and
    // targets. Passes of the same objectives in the same order and of the same form enqueue the same work.
    std::vector<std::shared_ptr<const void>> objectives;
    std::vector<int64_t> form;  // Whatever else decides which blocks are called, and with what but `values`.
    std::vector<absl::Span<const float>> values;  // RoutingRows::values of all blocks lie in these.
    int64_t targets = 0;                          // T of all objectives
    int64_t sums = 0;                             // n, rows of the gradient
  };
  struct Results {
    Matrix logprobs;  // float32 [1, T]
    Matrix sums;      // float32 [n, E], 0 until a block writes to it
  };
  // `enqueue` calls blocks, and waits for nothing. Matrices and tapes that it makes end with it. A backend that has
  // recorded such a pass may replay it with the new values, and not call `enqueue`. Then the results are read.
  virtual void RunPass(const Pass& pass, absl::FunctionRef<void(const Results&)> enqueue, absl::Span<float> logprobs,
                       absl::Span<float> sums) = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_WHOLE_PASSES_H_
