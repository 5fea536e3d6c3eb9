#include "tests/gpu/marks_device.h"
#include "tests/host_cuda/runtime.h"

extern "C" const c3po::cuda::IndexKernels* c3po_index_kernels(int version);
extern "C" const c3po::cuda::ModelKernels* c3po_model_kernels(int version);

namespace c3po {

MarksDevice OpenMarksDevice(std::string*) {
  static auto* const runtime = new host_cuda::HostRuntime();
  return {runtime, c3po_model_kernels(cuda::kCudaLibraryVersion), c3po_index_kernels(cuda::kCudaLibraryVersion),
          /*has_times=*/false};
}

}  // namespace c3po
