#ifndef C3PO_SERVER_COMPUTE_CUDA_TARGET_LOSS_H_
#define C3PO_SERVER_COMPUTE_CUDA_TARGET_LOSS_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"

namespace c3po::cuda {

// A pair of cases as one of them sees it, by places among all continuations: the partner's answer as a choice of its
// own, the partner's answer, and its answer as a choice of the partner's.
struct PairPlaces {
  int32_t own_other, answer, other;
};

// dJ/dlogp of an objective's targets, J as ContinuationLoss has it (server/compute/whole_passes.h). In double precision
// and in the order that is written here, so that the host, which computes the loss itself, finds the same derivatives:
//   s_c = sum over c's targets t, ascending, of logp_t / m_c                  m_c: the number of c's targets
//   e_c, of case i's continuations c other than the answer g, is the sum of, in this order, what there is of
//     w / (1 + exp((s_g - s_c) + (s_g' - s_c')))        for each of i's pairs whose partner answers c, as PairPlaces
//     K_i exp(s_c - max s) / sum_c exp(s_c - max s)     where it contrasts, and has several continuations
//     trust K_i (exp(s_c - max s) / sum_c exp(s_c - max s) - p0_c)              likewise, where there is a trust region
//   e_g = 0 - e_c - e_c' - ..., less K_i where the loss is the answer's, plus, of a single continuation in a trust
//   region,
//     trust K_i (q - p0_g) / (1 - q),  q = exp(min(s_g, -1e-7))
//   dlogp_t = float(sum over the targets t' of t's row and token, ascending, of e_c(t') / m_c(t')), t the first of
//   these
// It is 0 for targets that are not the first, and where the sum is at most 1e-12 of the magnitudes added.
// All pointers are of the device. Thread-safe; nothing is checked.
struct TargetLossArgs {
  const float* logprobs = nullptr;  // [targets]
  int32_t cases = 0, continuations = 0, targets = 0;
  int32_t contrasts = 0;                  // 1: among the continuations of a case
  const double* case_weights = nullptr;   // [cases] K
  const int32_t* case_gold = nullptr;     // [cases] of the case's continuations
  const int32_t* case_begin = nullptr;    // [cases + 1] continuations of a case
  const int32_t* target_begin = nullptr;  // [continuations + 1] targets of a continuation
  // Target t stands for those of continuations same[same_begin[t] ... same_begin[t + 1]): none unless it is the first.
  const int32_t* same_begin = nullptr;   // [targets + 1]
  const int32_t* same = nullptr;         // [targets]
  const int32_t* pair_begin = nullptr;   // [cases + 1] pairs of a case; null where the loss is not over pairs
  const PairPlaces* pairs = nullptr;     // [pairs]
  const double* pair_weights = nullptr;  // [pairs] w
  double trust = 0;                      // 0: there is no trust region
  const double* base = nullptr;          // [continuations] p0; null without a trust region
  double* scores = nullptr;              // [continuations] s; room
  double* derivatives = nullptr;         // [continuations] e; room
  float* dlogprobs = nullptr;            // [targets]
};
Error LaunchTargetLoss(const TargetLossArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_TARGET_LOSS_H_
