#include "server/model/device.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "server/model/cpu/bfloat16_products.h"
#include "server/model/cpu/thread_pool.h"

namespace c3po {

absl::StatusOr<at::Device> OpenDevice(const std::string& name) {
  if (name == "cpu") return at::Device(at::kCPU);
  if (name != "cuda") return absl::InvalidArgumentError(absl::StrCat("device \"", name, "\" is not one of cpu, cuda"));
  // Its static initializers register the CUDA kernels with the dispatcher; it lies beside libtorch_cpu.so.
  static void* const library = dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    return absl::FailedPreconditionError(absl::StrCat("device cuda: libtorch's CUDA library does not load: ",
                                                      reason ? reason : "loaded before and failed"));
  }
  try {
    if (!at::globalContext().hasCUDA()) {
      return absl::FailedPreconditionError("device cuda: no usable NVIDIA GPU or driver on this machine");
    }
  } catch (const std::exception& error) {
    return absl::FailedPreconditionError(absl::StrCat("device cuda: ", error.what()));
  }
  return at::Device(at::kCUDA, 0);
}

absl::StatusOr<at::ScalarType> ChooseDtype(const std::string& name, at::Device device, at::ScalarType stored) {
  if (name == "float32") return at::kFloat;
  if (name == "bfloat16") return at::kBFloat16;
  if (name != "auto") {
    return absl::InvalidArgumentError(absl::StrCat("dtype \"", name, "\" is not one of auto, float32, bfloat16"));
  }
  return device.is_cuda() || stored == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
}

absl::StatusOr<cpu::WeightLayout> ChooseLayout(const std::string& arithmetic, at::Device device, at::ScalarType dtype) {
  const bool has_unit = cpu::FastestBfloat16Unit() != cpu::Bfloat16Unit::kNone;
  if (arithmetic == "auto") {
    return device.is_cpu() && dtype == at::kBFloat16 && has_unit ? cpu::WeightLayout::kPairs
                                                                 : cpu::WeightLayout::kPanels;
  }
  if (arithmetic == "float32") return cpu::WeightLayout::kPanels;
  if (arithmetic != "bfloat16") {
    return absl::InvalidArgumentError(
        absl::StrCat("arithmetic \"", arithmetic, "\" is not one of auto, float32, bfloat16"));
  }
  if (!device.is_cpu()) {
    return absl::InvalidArgumentError("arithmetic bfloat16 is of device cpu; others compute in the weights' dtype");
  }
  if (dtype != at::kBFloat16) {
    return absl::InvalidArgumentError("arithmetic bfloat16 needs weights of dtype bfloat16");
  }
  if (!has_unit) {
    return absl::FailedPreconditionError(
        "arithmetic bfloat16: this processor has neither AVX-512 BF16 nor AMX, or the kernel keeps them back");
  }
  return cpu::WeightLayout::kPairs;
}

void SetComputeThreads(int threads, bool pinned) {
  cpu::ThreadPool::SetThreads(threads, pinned);
  at::set_num_threads(1);
}

int ComputeThreads() { return cpu::ThreadPool::Shared().threads(); }

}  // namespace c3po
