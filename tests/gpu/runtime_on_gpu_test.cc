// The runtime of libc3po_cuda.so on a real GPU.

#include "index/base/cuda/library.h"
#include "tests/gpu/runtime_contract.h"

namespace c3po {

cuda::Runtime* OpenTestedRuntime(std::string* why) {
  const auto runtime = cuda::OpenRuntime();
  if (runtime.ok()) return *runtime;
  *why = std::string(runtime.status().message());
  return nullptr;
}

}  // namespace c3po
