#ifndef C3PO_SERVER_COMPUTE_CPU_EXPERT_SELECTION_H_
#define C3PO_SERVER_COMPUTE_CPU_EXPERT_SELECTION_H_

#include <cstdint>

#include "absl/types/span.h"
#include "server/compute/backend.h"
#include "server/compute/cpu/memory.h"
#include "server/model/config/model_config.h"

namespace c3po::cpu {

// Mixing weights of R rows; all float32 rows [R, E] but where another shape is said. They lie in the memory that
// SelectExperts was given.
struct MixingRows {
  int64_t rows = 0;
  int64_t k = 0;                   // the most experts of a row
  float* probabilities = nullptr;  // softmax(logits + shift), or the override; rows sum to 1
  int64_t* selected = nullptr;     // [R, k], the likeliest first, then -1; null when k_e = E (all are)
  float* totals = nullptr;         // [R]: sum of the selected probabilities, when they are divided by it
  float* weights = nullptr;        // routed_scaling_factor times the above, zero where not selected
  bool* replaced = nullptr;        // [R]: an override stands in for the softmax; null: in no row
};

// From the router's logits [R, E], which become the probabilities where they lie. What is not a number is selected, and
// so seen in the result. Of experts with equal weight, and of groups, the lowest numbers come first
// (server/model/config/expert_choice.h). Rows that `counts` names take as many experts as it says; there is no way back
// through them.
MixingRows SelectExperts(const ModelConfig& config, absl::Span<const RoutingRows> routing, int64_t rows, float* logits,
                         Memory& memory, absl::Span<const CountedRows> counts = {});

// dJ/dweights [R, E] becomes dJ/dprobabilities, where it lies: zero where not selected. `dlogits` receives dJ/dlogits
// of the softmax, p (dp - sum(p dp)). Where weights are normalized the sum is 0 and is left out, so that experts which
// were not selected have gradient 0.
void SelectExpertsBackward(const ModelConfig& config, const MixingRows& mixing, float* dweights, float* dlogits);

// The totals of dJ/dvalues over each override's rows, as Backend::FeedForwardBackward has them: of dprobabilities for
// weights, of dlogits for shifts.
void SumOverRouting(absl::Span<const RoutingRows> routing, int64_t experts, const float* dprobabilities,
                    const float* dlogits, const Matrix& sums);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_EXPERT_SELECTION_H_
