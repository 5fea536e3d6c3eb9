#ifndef C3PO_SERVER_COMPUTE_WHOLE_PASSES_H_
#define C3PO_SERVER_COMPUTE_WHOLE_PASSES_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/types/span.h"
#include "server/compute/backend.h"

namespace c3po {

// How an objective weighs the log-probabilities of its targets. Notation: n cases, C continuations of all cases, those
// of a case side by side, T targets of all continuations, those of a continuation side by side. With s_c the mean
// log-probability of continuation c's targets, K_i the weight of case i and g_i its answer,
//   J = sum_i K_i l_i,   l_i = -log softmax_c(s_c)[g_i] where it contrasts and has several continuations, else -s_{g_i}.
struct ContinuationLoss {
  bool contrasts = false;
  absl::Span<const double> case_weights;   // [n]
  absl::Span<const int32_t> case_gold;     // [n], of the case's continuations
  absl::Span<const int32_t> case_begin;    // [n + 1], continuations
  absl::Span<const int32_t> target_begin;  // [C + 1], targets
  absl::Span<const int32_t> first_same;    // [T], the first target of the same row and token
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
