#ifndef C3PO_TESTS_SERVER_MODEL_TINY_ON_CUDA_H_
#define C3PO_TESTS_SERVER_MODEL_TINY_ON_CUDA_H_

#include <memory>
#include <string>

#include "server/compute/aten/rope_tensors.h"
#include "server/compute/cuda/cuda_backend.h"
#include "server/compute/cuda/kernel_table.h"
#include "tests/host_cuda/runtime.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {

// A golden model on the GPU's kernels, which run on the host here. `runtime` outlives it.
inline std::unique_ptr<cuda::CudaBackend> TinyOnCuda(const std::string& name, const ModelConfig& config,
                                                     cuda::Runtime& runtime, ElementType type = ElementType::kFloat32,
                                                     WeightFormat format = WeightFormat::kElements) {
  const cuda::CudaDevice device{&runtime, c3po_model_kernels(cuda::kCudaLibraryVersion), nullptr};
  return std::make_unique<cuda::CudaBackend>(config, TinyWeights(name, config), type, aten::MakeRopeTable(config),
                                             device, nullptr, format);
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_TINY_ON_CUDA_H_
