// The runtime and the primitives of the host model keep the promises that tests/gpu holds the GPU's to.

#include "tests/gpu/runtime_contract.h"

#include <memory>
#include <vector>

#include "tests/host_cuda/runtime.h"

namespace c3po {

// Each of another seed.
cuda::Runtime* OpenTestedRuntime(std::string*) {
  static auto* const opened = new std::vector<std::unique_ptr<host_cuda::HostRuntime>>;
  host_cuda::SetSeed(opened->size());
  opened->push_back(std::make_unique<host_cuda::HostRuntime>());
  return opened->back().get();
}

}  // namespace c3po
