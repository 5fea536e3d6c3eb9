#ifndef C3PO_SERVER_COMPUTE_CUDA_CUDA_WEIGHTS_H_
#define C3PO_SERVER_COMPUTE_CUDA_CUDA_WEIGHTS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "server/compute/cuda/device_memory.h"
#include "server/compute/cuda/host_copies.h"
#include "server/compute/cuda/layout.h"
#include "server/compute/matrix.h"
#include "server/compute/model_weights.h"
#include "server/model/config/model_config.h"

namespace c3po::cuda {

// A layer's weights in GPU memory. Roles and shapes: WeightRole; what a layer does not have is null, or has null data.
struct CudaLayer {
  const float* attention_norm = nullptr;
  PackedWeights qkv;
  const float* qkv_bias = nullptr;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  PackedWeights output;
  const float* output_bias = nullptr;

  const float* query_latent_norm = nullptr;  // of latent attention, as are those below
  PackedWeights query_expand;
  const float* kv_latent_norm = nullptr;
  PackedWeights kv_expand;

  const float* feed_forward_norm = nullptr;
  const float* router = nullptr;              // [E, d] row-major
  PackedWeights gate_up, down;                // of the first expert; the others follow
  PackedWeights shared_gate_up, shared_down;  // of the shared expert, or a dense layer's network
  const float* shared_gate = nullptr;         // [d]

  bool moe() const { return router != nullptr; }
};

// A model's weights. A value; copies share the memory.
struct CudaWeights {
  PackedWeights embedding;  // [V, d]
  const float* final_norm = nullptr;
  PackedWeights head;  // [V, d]; the embedding itself when tied
  std::vector<CudaLayer> layers;
  ElementType type = ElementType::kFloat32;  // of matrices that are not quantized, and of the rows that meet any
  WeightFormat format = WeightFormat::kElements;
  int64_t bytes = 0;  // that all take
  std::vector<std::shared_ptr<void>> memory;
};

// Copies all weights to the device. Matrices of `type`: bfloat16 is one plane, float32 three (layout.h), which is
// exact. `format` kInt8 or kInt4, `as_stored`: what cpu::PackWeights holds quantized is so here, with the same levels
// and scales; its products then round rows as `type` says, and no weight. Vectors and routers are float32; norms, the
// output's bias, routers and the shared expert's gate are rounded to `type` first, the bias of queries, keys and values
// is not. On the host one matrix at a time is packed, by cpu::ThreadPool::Shared(). Errors are those of PackEach;
// DeviceError; std::bad_alloc; std::invalid_argument: a weight to be quantized is not finite, or 2^120 or more, a level
// of 8 bits is -128, or as cpu::PackWeights, told by its tensor's name.
CudaWeights PackWeights(const ModelConfig& config, const ModelWeights& weights, ElementType type, WeightFormat format,
                        bool as_stored, DevicePool& memory, HostCopies& copies, const LoadProgress& progress = nullptr);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_CUDA_WEIGHTS_H_
