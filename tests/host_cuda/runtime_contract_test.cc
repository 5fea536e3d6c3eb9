// The runtime of the host model keeps the promises that tests/gpu holds the GPU's to.

#include "tests/gpu/runtime_contract.h"
#include "tests/host_cuda/runtime.h"

namespace c3po {

cuda::Runtime* OpenTestedRuntime(std::string*) { return new host_cuda::HostRuntime(); }

}  // namespace c3po
