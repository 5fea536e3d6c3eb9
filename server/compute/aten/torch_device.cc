#include "server/compute/aten/torch_device.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/cuda/library.h"
#include "index/base/status_macros.h"
#include "server/types/device_name.h"

namespace c3po::aten {

absl::StatusOr<at::Device> OpenDevice(const std::string& name) {
  if (name == kCpuDevice) return at::Device(at::kCPU);
  if (name != kCudaDevice) {
    return absl::InvalidArgumentError(
        absl::StrCat("device \"", name, "\" is not one of ", absl::StrJoin(kDeviceNames, ", ")));
  }
  // First our own door, which says in one sentence what is missing: its file, the driver, a GPU.
  C3PO_RETURN_IF_ERROR(cuda::OpenRuntime().status());
  // Its static initializers register the CUDA kernels with the dispatcher; it lies beside libtorch_cpu.so.
  static void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    return absl::FailedPreconditionError(absl::StrCat("device cuda: libtorch's CUDA library does not load: ",
                                                      reason ? reason : "loaded before and failed"));
  }
  try {
    if (!at::globalContext().hasCUDA()) {
      return absl::FailedPreconditionError("device cuda: libtorch does not find the GPU that libc3po_cuda.so has opened");
    }
  } catch (const std::exception& error) {
    return absl::FailedPreconditionError(absl::StrCat("device cuda: ", error.what()));
  }
  return at::Device(at::kCUDA, 0);
}

void UseOneThread() { at::set_num_threads(1); }

}  // namespace c3po::aten
