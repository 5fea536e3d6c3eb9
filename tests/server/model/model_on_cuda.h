#ifndef C3PO_TESTS_SERVER_MODEL_MODEL_ON_CUDA_H_
#define C3PO_TESTS_SERVER_MODEL_MODEL_ON_CUDA_H_

#include <memory>
#include <string>

#include "index/base/cuda/runtime.h"
#include "server/model/moe_model.h"

namespace c3po {

// A golden model of `config` on the GPU's kernels, which run on the host here; without a cache. `runtime` outlives it.
// For tests that have the index's kernels beside it: the headers of both do not go together.
std::unique_ptr<MoeModel> ModelOnCuda(const std::string& name, const ModelConfig& config, cuda::Runtime& runtime);

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_MODEL_ON_CUDA_H_
