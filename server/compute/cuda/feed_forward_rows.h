#ifndef C3PO_SERVER_COMPUTE_CUDA_FEED_FORWARD_ROWS_H_
#define C3PO_SERVER_COMPUTE_CUDA_FEED_FORWARD_ROWS_H_

#include <memory>

#include "server/compute/cuda/cuda_backend.h"

// What the feed-forward blocks of CudaBackend hand each other.
namespace c3po::cuda {

// Where an objective's routing lies on the device.
struct CudaBackend::ObjectiveRouting {
  std::shared_ptr<void> memory;
  const RowOverride* overrides = nullptr;  // [R]; null: the model routes all
  const RoutingSum* sums = nullptr;
  int sum_count = 0;
};

// What a run of the block leaves; all on the device.
struct CudaBackend::FeedForwardRows {
  ActivationPlanes normed;          // [R, d]
  float* logits = nullptr;          // [R, E]
  int* selected = nullptr;          // [R, k]
  float* weights = nullptr;         // likewise
  float* probabilities = nullptr;   // [R, E]
  float* totals = nullptr;          // [R]
  float* shared_weights = nullptr;  // [R], where the shared expert has a gate
  float* gate_up = nullptr;         // of every pair, before SiLU
  float* shared_gate_up = nullptr;  // of every row
};

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_FEED_FORWARD_ROWS_H_
