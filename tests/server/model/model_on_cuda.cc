#include "tests/server/model/model_on_cuda.h"

#include "tests/server/model/tiny_on_cuda.h"

namespace c3po {

std::unique_ptr<MoeModel> ModelOnCuda(const std::string& name, const ModelConfig& config, cuda::Runtime& runtime) {
  return MoeModel::OnBackend(config, TinyOnCuda(name, config, runtime), int64_t{1} << 20);
}

}  // namespace c3po
