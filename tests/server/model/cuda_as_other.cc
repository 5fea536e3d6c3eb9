#include "tests/server/model/other_backend.h"
#include "tests/server/model/tiny_on_cuda.h"

namespace c3po {

std::unique_ptr<Backend> OtherBackend(const std::string& name, const ModelConfig& config) {
  // For all of a process: tests make backends one after another, and each goes before the runtime.
  static auto* const runtime = new host_cuda::HostRuntime();
  return TinyOnCuda(name, config, *runtime);
}

}  // namespace c3po
