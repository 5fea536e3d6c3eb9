#include "server/compute/device.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/status_macros.h"
#include "server/compute/aten/aten_backend.h"
#include "server/compute/aten/aten_queue.h"
#include "server/compute/cpu/bfloat16_products.h"
#include "server/compute/cpu/cpu_backend.h"
#include "server/compute/cpu/cpu_queue.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/compute/weight_tensors.h"
#include "server/types/device_name.h"

namespace c3po {

absl::StatusOr<at::Device> OpenDevice(const std::string& name) {
  if (name == kCpuDevice) return at::Device(at::kCPU);
  if (name != kCudaDevice) {
    return absl::InvalidArgumentError(
        absl::StrCat("device \"", name, "\" is not one of ", absl::StrJoin(kDeviceNames, ", ")));
  }
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

namespace {

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

}  // namespace

WeightPlacement PlacementOn(at::Device device, at::ScalarType dtype) {
  if (device.is_cpu()) return {device, dtype, at::kFloat, true};
  return {device,
          dtype,
          dtype,
          false,
          cpu::WeightLayout::kPanels,
          dtype == at::kBFloat16 ? std::string("bfloat16") : std::string("float32")};
}

absl::StatusOr<WeightPlacement> ChoosePlacement(const Checkpoint& checkpoint, const std::string& device,
                                                const std::string& dtype, const std::string& arithmetic) {
  C3PO_ASSIGN_OR_RETURN(const at::Device opened, OpenDevice(device));
  C3PO_ASSIGN_OR_RETURN(const at::ScalarType stored, StoredDtype(checkpoint));
  C3PO_ASSIGN_OR_RETURN(const at::ScalarType chosen, ChooseDtype(dtype, opened, stored));
  WeightPlacement placement = PlacementOn(opened, chosen);
  C3PO_ASSIGN_OR_RETURN(placement.layout, ChooseLayout(arithmetic, opened, chosen));
  if (placement.layout == cpu::WeightLayout::kPairs) placement.arithmetic = "bfloat16";
  return placement;
}

void PackWeights(MoeWeights& weights, cpu::WeightLayout layout) {
  if (!weights.embedding.is_cpu()) return;
  const c10::InferenceMode inference;
  const auto pack = [](at::Tensor& matrices, int64_t dimensions, cpu::WeightLayout to) {
    if (matrices.defined() && matrices.dim() == dimensions) matrices = ToPanels(matrices, to);  // Else it was before.
  };
  const bool tied = weights.lm_head.is_same(weights.embedding);
  pack(weights.lm_head, 2, layout);
  if (tied) weights.embedding = weights.lm_head;
  for (LayerWeights& layer : weights.layers) {
    for (at::Tensor* matrix : {&layer.qkv, &layer.output, &layer.query_expand, &layer.kv_expand}) {
      pack(*matrix, 2, layout);
    }
    pack(layer.router, 2, cpu::WeightLayout::kPanels);
    for (ExpertWeights* experts : {&layer.experts, &layer.shared}) {
      if (!experts->down.defined()) continue;
      const bool whole_pairs = experts->neurons() % 2 == 0;  // Of each expert's columns of `down`.
      pack(experts->gate_up, 3, layout);
      pack(experts->down, 2, whole_pairs ? layout : cpu::WeightLayout::kPanels);
    }
  }
}

std::unique_ptr<Backend> MakeBackend(const ModelConfig& config, const MoeWeights& weights, const RopeTable& rope) {
  if (weights.embedding.is_cpu()) return std::make_unique<cpu::CpuBackend>(config, weights, rope);
  return std::make_unique<aten::AtenBackend>(config, weights, rope);
}

absl::StatusOr<std::unique_ptr<DeviceQueue>> OpenQueue(const std::string& device) {
  C3PO_ASSIGN_OR_RETURN(const at::Device opened, OpenDevice(device));
  if (opened.is_cpu()) return std::make_unique<cpu::CpuQueue>();
  return aten::AtenQueue::Create(opened);
}

void SetComputeThreads(int threads, bool pinned) {
  cpu::ThreadPool::SetThreads(threads, pinned);
  at::set_num_threads(1);
}

int ComputeThreads() { return cpu::ThreadPool::Shared().threads(); }

}  // namespace c3po
