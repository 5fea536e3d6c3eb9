#ifndef C3PO_SERVER_COMPUTE_CUDA_REMEMBERED_H_
#define C3PO_SERVER_COMPUTE_CUDA_REMEMBERED_H_

#include <cstdint>

#include "index/base/cuda/runtime.h"

// A feed-forward block at rows that do not change: outputs [R, E, d] holds Expert_e(h_r), computed once for all
// experts. What is left of an evaluation is a weighted sum, and its way back. R rows, E experts, k of them a row;
// float32 on the device, packed. An entry of `selected` outside [0, E) counts nothing. A row's result is bitwise the
// same whatever other rows there are.
namespace c3po::cuda {

// all[r, e] = e: the selection of all experts.
struct SelectAllArgs {
  int32_t rows = 0, experts = 0;
  int* selected = nullptr;  // [R, E]
};
Error LaunchSelectAll(const SelectAllArgs& args, Stream stream);

// out[r] = x[r] + factor * (sum over r's experts, ascending, of w[r, e] outputs[r, e], then shared[r])
struct MixRememberedArgs {
  int32_t rows = 0, d = 0, experts = 0, k = 0;
  const float* outputs = nullptr;
  const int* selected = nullptr;   // [R, k]
  const float* weights = nullptr;  // [R, k]
  const float* shared = nullptr;   // [R, d], or null
  const float* x = nullptr;        // [R, d]
  float factor = 1;
  float* out = nullptr;  // [R, d]
};
Error LaunchMixRemembered(const MixRememberedArgs& args, Stream stream);

// dweights[r, j] = factor * dout[r] . outputs[r, selected[r, j]], in a fixed order. 0 for what counts nothing.
struct MixRememberedBackwardArgs {
  int32_t rows = 0, d = 0, experts = 0, k = 0;
  const float* outputs = nullptr;
  const int* selected = nullptr;
  const float* dout = nullptr;  // [R, d]
  float factor = 1;
  float* dweights = nullptr;  // [R, k]
};
Error LaunchMixRememberedBackward(const MixRememberedBackwardArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_REMEMBERED_H_
