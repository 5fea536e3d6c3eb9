#ifndef C3PO_SERVER_COMPUTE_CPU_EXPERT_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_CPU_EXPERT_PRODUCTS_H_

#include <cstdint>

#include "absl/types/span.h"
#include "server/compute/cpu/layer_views.h"
#include "server/compute/cpu/memory.h"

namespace c3po::cpu {

// Which experts R rows take: k of n each, or all.
struct Selection {
  const int64_t* selected = nullptr;  // [R, k], -1 where a row takes fewer; null: every row takes all
  int64_t k = 0;
  const float* weights = nullptr;  // [R, n]; null: 1 each
};

// What a run of the experts leaves for the way back, of B (row, expert) pairs: by expert where rows select some, by row
// where they take all.
struct ExpertRowsTape {
  int64_t* assigned = nullptr;  // [B] rows; null where rows take all, as are `pairs` and `offsets`
  int64_t* pairs = nullptr;     // [R, k] each row's, ascending by expert; then B, of a row of zeros
  int64_t* offsets = nullptr;   // [n + 1] first pair of each expert
  int64_t count = 0;            // B
  int64_t k = 0;                // of `pairs`
  float* gate_up = nullptr;     // [B, 2f]
  float* scale = nullptr;       // [B] mixing weights
};

// out [R, d] = sum_e weights[r, e] * Expert_e(x[r]), Expert_e(h) = down_e (silu(gate_e h) * up_e h); x [R, d]. The rows
// of all experts are one job of the product kernels. Experts that no row selects are not read. The tape lies in
// `memory`.
ExpertRowsTape RunExperts(const NetworkViews& networks, const Selection& selection, const float* x, int64_t rows,
                          Memory& memory, Arena& scratch, float* out);
// From dJ/dout [R, d]: dweights [R, n] (<dJ/dout, Expert_e(h)> where selected, else 0), and dJ/dx [R, d]; both
// overwritten. Null dx: it is not wanted.
void RunExpertsBackward(const NetworkViews& networks, const ExpertRowsTape& tape, const float* dout, int64_t rows,
                        Arena& scratch, float* dweights, float* dx);
// outputs[r, e] = Expert_e(x[r]) of the chosen experts; outputs [R, n, d].
void RunExpertsApart(const NetworkViews& networks, absl::Span<const int64_t> chosen, const float* x, int64_t rows,
                     Arena& scratch, float* outputs);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_EXPERT_PRODUCTS_H_
