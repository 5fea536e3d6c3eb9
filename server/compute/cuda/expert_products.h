#ifndef C3PO_SERVER_COMPUTE_CUDA_EXPERT_PRODUCTS_H_
#define C3PO_SERVER_COMPUTE_CUDA_EXPERT_PRODUCTS_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"
#include "server/compute/cuda/layout.h"

// Products of a feed-forward block: of the routed experts with the rows that selected them, and of what runs in every
// row, a shared expert or a dense layer's network. R rows, k experts a row, d hidden size, f neurons, f' = f padded
// to 16. A pair is a row with one of its experts, pair = row * k + j for selected[row, j]; of what runs in every row,
// pair = row.
//
// Nothing is decided on the host: the kernels read `selected`, and list each expert's rows. A row's result is bitwise
// the same whatever other rows there are, however many, and by whichever of these kernels.
//
// A decode step (R <= 64): LaunchGateUp, LaunchExpertMix; each block makes the list for itself. A prefill:
// LaunchExpertLists once, LaunchGateUp and LaunchDownApart with these lists, LaunchExpertSum. Any R is right either
// way; without lists each 64 rows read their experts' weights anew.
namespace c3po::cuda {

// Which experts the rows take. An entry outside [0, experts) is none: its pair is not computed, and what a kernel
// writes by pair is not written there. A row names an expert once.
struct ExpertSelection {
  int rows = 0;  // R
  int k = 0;     // 0: there are no routed experts
  int experts = 0;
  const int* selected = nullptr;  // [R, k]
};

// The one or the other of what a product runs over. Which pointers are used is told by the product.
struct ExpertNetworks {
  PackedWeights weights;         // of network 0; data null: there is none of this kind
  const float* scale = nullptr;  // [pairs] mixing weights, or the shared expert's gates; null: 1 each
  ActivationPlanes in;           // rows that enter
  ActivationPlanes planes_out;   // rows that leave, by pair
  float* floats_out = nullptr;   // likewise
  float* gate_up = nullptr;      // [pairs, 2 f'] before SiLU, in the packed order of GateRow and UpRow
  float* dots = nullptr;         // [pairs, units of 16]
};

// What both share.
struct ExpertProductArgs {
  ExpertSelection selection;
  ExpertNetworks routed, shared;
  int64_t floats_stride = 0;         // of floats_out
  const int* list_counts = nullptr;  // what LaunchExpertLists wrote, or null
  const int* list_pairs = nullptr;
  int multiprocessors = 1;  // of the device
};

// h = scale * silu(W_gate x) * W_up x of every pair.
//   weights  gate and up [2 f', d], packed by PackedLayout::GateUp
//   in       x [R], both kinds
//   planes_out  h, stride at least f padded to 32: the padding is zero
//   gate_up  written, unless null
Error LaunchGateUp(const ExpertProductArgs& args, Stream stream);

// Back through W_down and SiLU. With t = W_down^T dy, s = sigmoid(gate):
//   dgate = scale t up s (1 + gate (1 - s)),  dup = scale t gate s,  dJ/dscale = sum over neurons of t gate s up.
//   weights  down [d, f]
//   in       dy [R], for_transposed, both kinds
//   gate_up  read, as LaunchGateUp wrote it
//   planes_out  (dgate, dup) [2 f'] in the order of rows that enter x W_gate_up; stride at least 2 f'
//   dots     dJ/dscale in parts: its sum over each unit of 16 neurons, UnitsOfDots(f) a pair. LaunchDotSums adds them.
Error LaunchDownBackward(const ExpertProductArgs& args, Stream stream);
constexpr int UnitsOfDots(int neurons) { return 2 * Chunks(neurons); }

// y = W_down h, one by one.
//   weights  down [d, f]
//   in       h by pair
//   floats_out  y [d] by pair, floats_stride apart
Error LaunchDownApart(const ExpertProductArgs& args, Stream stream);

// Each expert's pairs, ascending.
struct ExpertListArgs {
  ExpertSelection selection;
  int* counts = nullptr;  // [experts]
  int* pairs = nullptr;   // [experts, R], of which the first counts[e] are written
};
Error LaunchExpertLists(const ExpertListArgs& args, Stream stream);

// What LaunchExpertMix gives, of y as LaunchDownApart left it.
struct ExpertSumArgs {
  ExpertSelection selection;
  int columns = 0;                // d
  const float* routed = nullptr;  // y by pair
  const float* shared = nullptr;  // y by row; null: nothing runs in every row
  int64_t stride = 0;             // of both
  const float* residual = nullptr;
  int64_t residual_stride = 0;
  float factor = 1;
  float* out = nullptr;
  int64_t out_stride = 0;
};
Error LaunchExpertSum(const ExpertSumArgs& args, Stream stream);

// out[r] = residual[r] + factor * (sum over r's experts, ascending, of W_e h[r, e], then the shared expert's), float32.
// Its way back: the same of h[r, e] W_e.
struct ExpertMixArgs {
  ExpertSelection selection;
  PackedWeights routed, shared;           // data null: there are none. Down [d, f]; transposed: gate and up [2 f', d].
  ActivationPlanes routed_in, shared_in;  // by pair, for_transposed where transposed
  bool transposed = false;
  const float* residual = nullptr;  // [R, d]; null: 0; may be `out`
  int64_t residual_stride = 0;
  float factor = 1;
  float* out = nullptr;  // [R, d]
  int64_t out_stride = 0;
};
Error LaunchExpertMix(const ExpertMixArgs& args, Stream stream);

// sums[i] = sum over the row's entries, in a fixed order. A warp a row.
struct DotSumsArgs {
  const float* dots = nullptr;  // [rows, width]
  int rows = 0, width = 0;
  float* sums = nullptr;  // [rows]
};
Error LaunchDotSums(const DotSumsArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_EXPERT_PRODUCTS_H_
