#ifndef C3PO_SERVER_COMPUTE_CUDA_ROUTER_H_
#define C3PO_SERVER_COMPUTE_CUDA_ROUTER_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"
#include "server/compute/cuda/layout.h"

// The beginning of a feed-forward block, and its way back. R rows, d hidden size, E experts, k experts a row. All
// pointers are of the device. A row's results are bitwise the same whatever other rows there are. Thread-safe; nothing
// is checked.
namespace c3po::cuda {

// What an override says about a row.
struct RowOverride {
  const float* values = nullptr;  // [E]; null: the model routes
  int32_t replaces = 0;           // 1: values stand for the softmax; 0: they are added to the logits
  int32_t reserved = 0;
};

// How experts are chosen from probabilities p [E]: of the groups (E / groups neighbors each) those groups_per_token
// with the largest maximum may be; of their experts the k with the largest p. Of equals, the lowest numbers. What is
// not a number counts as the largest, so that it is seen. Then w = p, divided by their sum if normalizes, times
// `factor`.
struct ExpertChoice {
  int32_t experts = 0;
  int32_t k = 0;
  int32_t groups = 1;
  int32_t groups_per_token = 1;
  int32_t normalizes = 0;
  float factor = 1;
};

// h = RmsNorm(x); logits = router h; p = softmax(logits + shift), or what replaces it; the choice.
// Blocks per row share the logits, and the last of them to end chooses: with one row, 64 experts and d = 2048 in
// bfloat16 a single block would read 256 KiB alone, some 4 us of a step; 16 blocks take half a microsecond.
struct RouterArgs {
  const float* x = nullptr;  // [R, d], packed
  int32_t rows = 0;
  int32_t d = 0;
  const float* norm = nullptr;  // [d]
  float eps = 0;
  ActivationPlanes normed;  // h, padded by zeros to a multiple of 32; data null: not wanted
  int32_t planes = 1;       // of `normed`

  // Null: there are no experts; a dense layer's rows are normed alone. Rows are of bfloat16 or float32: bfloat16 where
  // the model's weights are, as widening is exact and half the bytes are read. Aligned to 16 bytes; d any number.
  const void* router = nullptr;       // [E, d]
  const void* shared_gate = nullptr;  // [1, d], or null
  int32_t bfloat16_weights = 0;
  ExpertChoice choice;
  const RowOverride* overrides = nullptr;  // [R], or null
  const int32_t* counts = nullptr;     // [R]: of choice.k the experts that a row takes, the others are -1 and weigh 0;
                                       // null: all
  const int32_t* row_count = nullptr;  // rows from *row_count on are padding: they select -1. Null: none are.

  float* logits = nullptr;     // [R, E] room for the blocks of a row, and what the router says; required
  int32_t* arrived = nullptr;  // [R], 0 before and after; required where blocks_per_row > 1
  int32_t blocks_per_row = 1;

  int32_t* selected = nullptr;      // [R, k], the largest first
  float* weights = nullptr;         // [R, k]
  float* probabilities = nullptr;   // [R, E], or null
  float* totals = nullptr;          // [R]: what weights are divided by; or null
  float* shared_weights = nullptr;  // [R]: sigmoid(shared_gate h)
};
Error LaunchRouter(const RouterArgs& args, Stream stream);

// From dJ/dw of the selected experts:
//   dp_j = (dw_j - sum_i dw_i w_i) / total if normalizes, else factor dw_j; 0 for what is not selected
//   dlogits = p (dp - sum p dp); the sum is 0 if normalizes, so what is not selected has gradient 0
// and, with dn = dJ/dh of the experts, dJ/dh = dn + router^T dlogits + shared_gate^T dg g (1 - g). Where an override
// replaced the softmax, dlogits does not reach the router.
struct RouterBackwardArgs {
  int32_t rows = 0, d = 0;
  ExpertChoice choice;
  const void* router = nullptr;
  const void* shared_gate = nullptr;
  int32_t bfloat16_weights = 0;
  const RowOverride* overrides = nullptr;
  const int32_t* selected = nullptr;  // as LaunchRouter left them, as are the next four
  const float* weights = nullptr;
  const float* probabilities = nullptr;
  const float* totals = nullptr;
  const float* shared_weights = nullptr;
  const float* dweights = nullptr;         // [R, k]: dJ/dw
  const float* dshared_weights = nullptr;  // [R]: dJ/dg

  float* dprobabilities = nullptr;  // [R, E]: dJ/dp; what overrides that replace are told
  float* dlogits = nullptr;         // [R, E]: what shifts are told
  float* dnormed = nullptr;         // [R, d], dn; becomes dJ/dh. Null: not wanted.
};
Error LaunchRouterBackward(const RouterBackwardArgs& args, Stream stream);

// Of rows [begin, end), which an override governs: row `sum` of the sums takes the total of dprobabilities where it
// replaces, else of dlogits.
struct RoutingSum {
  int32_t begin = 0, end = 0;
  int32_t replaces = 0;
  int32_t sum = -1;  // -1: none
};
// sums[s] = sum over all entries that name s, in their order, in double precision. Rows that none names stay.
struct RoutingSumsArgs {
  const RoutingSum* entries = nullptr;  // [count]
  int32_t count = 0;
  int32_t sum_rows = 0;
  int32_t experts = 0;
  const float* dprobabilities = nullptr;
  const float* dlogits = nullptr;
  float* sums = nullptr;  // [sum_rows, E], `stride` apart
  int64_t stride = 0;
};
Error LaunchRoutingSums(const RoutingSumsArgs& args, Stream stream);

// dx = add + dJ/dx from dJ/dy of y = RmsNorm(x): with n = x rstd and g = dy weight, dJ/dx = rstd (g - n mean(g n)).
struct NormBackwardArgs {
  int32_t rows = 0, size = 0;
  const float* dy = nullptr;  // `dy_stride` apart, as the others
  const float* x = nullptr;
  const float* weight = nullptr;  // [size]
  const float* add = nullptr;     // or null; may be dx
  float eps = 0;
  float* dx = nullptr;
  int64_t dy_stride = 0, x_stride = 0, add_stride = 0, dx_stride = 0;
};
Error LaunchNormBackward(const NormBackwardArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_ROUTER_H_
