#include "server/compute/device.h"

#include <exception>
#include <stdexcept>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/cuda/library.h"
#include "index/base/status_macros.h"
#include "server/compute/aten/aten_queue.h"
#include "server/compute/aten/rope_tensors.h"
#include "server/compute/aten/torch_device.h"
#include "server/compute/cpu/activation_squares.h"
#include "server/compute/cpu/bfloat16_products.h"
#include "server/compute/cpu/cpu_backend.h"
#include "server/compute/cpu/cpu_queue.h"
#include "server/compute/cpu/cpu_weights.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/compute/cuda/cuda_backend.h"
#include "server/compute/cuda/kernel_table.h"
#include "server/model/config/tensor_plan.h"
#include "server/types/device_name.h"
#include "server/weights/gguf_blocks.h"

namespace c3po {
namespace {

absl::StatusOr<ElementType> ChooseDtype(const std::string& name, const std::string& device, DType stored) {
  if (name == "float32") return ElementType::kFloat32;
  if (name == "bfloat16") return ElementType::kBfloat16;
  if (name != "auto") {
    return absl::InvalidArgumentError(absl::StrCat("dtype \"", name, "\" is not one of auto, float32, bfloat16"));
  }
  const bool bfloat16_holds_it = stored == DType::kBF16 || stored == DType::kF8E4M3 || IsBlockType(stored);
  return device != kCpuDevice || bfloat16_holds_it ? ElementType::kBfloat16 : ElementType::kFloat32;
}

absl::StatusOr<cpu::WeightLayout> ChooseLayout(const std::string& arithmetic, const std::string& device,
                                               ElementType dtype) {
  const bool has_unit = cpu::FastestBfloat16Unit() != cpu::Bfloat16Unit::kNone;
  const bool bfloat16 = dtype == ElementType::kBfloat16;
  if (arithmetic == "auto") {
    return device == kCpuDevice && bfloat16 && has_unit ? cpu::WeightLayout::kPairs : cpu::WeightLayout::kPanels;
  }
  if (arithmetic == "float32") return cpu::WeightLayout::kPanels;
  if (arithmetic != "bfloat16") {
    return absl::InvalidArgumentError(
        absl::StrCat("arithmetic \"", arithmetic, "\" is not one of auto, float32, bfloat16"));
  }
  if (device != kCpuDevice) {
    return absl::InvalidArgumentError("arithmetic bfloat16 is of device cpu; others compute in the weights' dtype");
  }
  if (!bfloat16) return absl::InvalidArgumentError("arithmetic bfloat16 needs weights of dtype bfloat16");
  if (!has_unit) {
    return absl::FailedPreconditionError(
        "arithmetic bfloat16: this processor has neither AVX-512 BF16 nor AMX, or the kernel keeps them back");
  }
  return cpu::WeightLayout::kPairs;
}

bool IsQuantized(const std::string& weights) { return weights == "int8" || weights == "int4"; }

// The dtype that both settings ask for.
absl::StatusOr<std::string> AgreedDtype(const PlacementOptions& options) {
  const std::string& weights = options.weights;
  if (weights == "auto" || IsQuantized(weights)) return options.dtype;
  if (weights != "float32" && weights != "bfloat16") {
    return absl::InvalidArgumentError(
        absl::StrCat("weights \"", weights, "\" is not one of auto, float32, bfloat16, int8, int4"));
  }
  if (options.dtype != "auto" && options.dtype != weights) {
    return absl::InvalidArgumentError(absl::StrCat("weights ", weights, " contradicts dtype ", options.dtype));
  }
  return weights;
}

const char* NameOf(WeightFormat format) { return format == WeightFormat::kInt8 ? "int8" : "int4"; }

// In which most matrices are packed: 4 bits where any is.
WeightFormat StoredFormat(const Checkpoint& checkpoint) {
  WeightFormat format = WeightFormat::kElements;
  for (const std::string& name : checkpoint.names()) {
    const DType type = checkpoint.Find(name)->dtype;
    if (type == DType::kInt4) return WeightFormat::kInt4;
    if (type == DType::kInt8) format = WeightFormat::kInt8;
  }
  return format;
}

// Of a placement whose dtype is chosen; `stored`: how the folder holds the weights.
absl::Status ChooseFormat(const PlacementOptions& options, WeightFormat stored, WeightPlacement& placement) {
  const bool as_stored = options.weights == "auto";
  const WeightFormat wanted = as_stored                   ? stored
                              : options.weights == "int8" ? WeightFormat::kInt8
                                                          : WeightFormat::kInt4;
  if (stored != WeightFormat::kElements && stored != wanted) {
    return absl::InvalidArgumentError(absl::StrCat("weights ", NameOf(wanted), ": the folder's are ", NameOf(stored),
                                                   " already: quantize the folder that it was made from, or take ",
                                                   "auto, float32 or bfloat16"));
  }
  if (options.arithmetic == "bfloat16") {
    return absl::InvalidArgumentError(
        absl::StrCat("arithmetic bfloat16 is not of weights ", NameOf(wanted), ": it is auto or float32 of these"));
  }
  if (options.arithmetic != "auto" && options.arithmetic != "float32")
    return absl::OkStatus();  // ChooseLayout refuses.
  placement.format = wanted;
  placement.as_stored = as_stored;
  placement.rounds_activations = options.device == kCpuDevice && options.arithmetic == "auto";
  return absl::OkStatus();
}

absl::StatusOr<cuda::CudaDevice> OpenCuda() {
  C3PO_ASSIGN_OR_RETURN(cuda::Runtime* const runtime, cuda::OpenRuntime());
  C3PO_ASSIGN_OR_RETURN(const auto* const kernels,
                        cuda::OpenLibrary()->Kernels<cuda::ModelKernels>("c3po_model_kernels"));
  return cuda::CudaDevice{runtime, kernels, [] { return OpenQueue(std::string(kCudaDevice)); }};
}

absl::Status CheckDevice(const std::string& device) {
  if (device == kCpuDevice) return absl::OkStatus();
  if (device == kCudaDevice) return OpenCuda().status();
  return absl::InvalidArgumentError(
      absl::StrCat("device \"", device, "\" is not one of ", absl::StrJoin(kDeviceNames, ", ")));
}

}  // namespace

std::string WeightPlacement::arithmetic() const {
  if (device == kCpuDevice && format != WeightFormat::kElements) {
    return !rounds_activations ? "float32" : format == WeightFormat::kInt4 ? "int8" : "int16";
  }
  const bool rounds = device == kCpuDevice ? layout == cpu::WeightLayout::kPairs : dtype == ElementType::kBfloat16;
  return rounds ? "bfloat16" : "float32";
}

absl::StatusOr<ElementType> ChooseKvType(const std::string& name, const WeightPlacement& weights) {
  const bool quantized = weights.device == kCpuDevice && weights.format != WeightFormat::kElements;
  const bool float32 = weights.dtype == ElementType::kFloat32 && !quantized;
  const ElementType by_weights = float32 ? ElementType::kFloat32 : ElementType::kBfloat16;
  if (name == "auto") return by_weights;
  if (name != "float32" && name != "bfloat16") {
    return absl::InvalidArgumentError(
        absl::StrCat("kv-cache-dtype \"", name, "\" is not one of auto, float32, bfloat16"));
  }
  const ElementType kv = name == "float32" ? ElementType::kFloat32 : ElementType::kBfloat16;
  if (weights.device == kCudaDevice && kv != by_weights) {
    return absl::InvalidArgumentError(absl::StrCat("kv-cache-dtype ", name, ": device cuda keeps keys and values in ",
                                                   name == "float32" ? "bfloat16" : "float32",
                                                   " beside a dtype of that"));
  }
  return kv;
}

std::string WeightPlacement::weights() const {
  if (format != WeightFormat::kElements) return NameOf(format);
  return dtype == ElementType::kBfloat16 ? "bfloat16" : "float32";
}

absl::StatusOr<WeightPlacement> ChoosePlacement(const Checkpoint& checkpoint, const PlacementOptions& options) {
  C3PO_RETURN_IF_ERROR(CheckDevice(options.device));
  C3PO_ASSIGN_OR_RETURN(const std::string dtype, AgreedDtype(options));
  WeightPlacement placement;
  placement.device = options.device;
  C3PO_ASSIGN_OR_RETURN(const DType stored, StoredType(checkpoint));
  C3PO_ASSIGN_OR_RETURN(placement.dtype, ChooseDtype(dtype, options.device, stored));
  const WeightFormat stored_format = StoredFormat(checkpoint);
  const bool as_stored = options.weights == "auto" && stored_format != WeightFormat::kElements;
  if (as_stored || IsQuantized(options.weights)) {
    C3PO_RETURN_IF_ERROR(ChooseFormat(options, stored_format, placement));
  }
  if (placement.format == WeightFormat::kElements) {
    C3PO_ASSIGN_OR_RETURN(placement.layout, ChooseLayout(options.arithmetic, options.device, placement.dtype));
  }
  C3PO_ASSIGN_OR_RETURN(placement.kv, ChooseKvType(options.kv_cache_dtype, placement));
  return placement;
}

absl::StatusOr<std::unique_ptr<Backend>> MakeBackend(const ModelConfig& config, const ModelWeights& weights,
                                                     const WeightPlacement& placement, const LoadProgress& progress) {
  try {
    if (placement.device == kCpuDevice) {
      cpu::CpuWeights packed = cpu::PackWeights(config, weights, placement.dtype, placement.layout, progress,
                                                placement.format, placement.as_stored, placement.columns.get());
      if (placement.observer != nullptr) placement.observer->Observe(config, packed);
      return std::make_unique<cpu::CpuBackend>(config, std::move(packed), aten::MakeRopeTable(config), placement.kv,
                                               placement.rounds_activations);
    }
    C3PO_ASSIGN_OR_RETURN(const cuda::CudaDevice device, OpenCuda());
    return std::make_unique<cuda::CudaBackend>(config, weights, placement.dtype, aten::MakeRopeTable(config), device,
                                               progress, placement.format, placement.as_stored);
  } catch (const std::invalid_argument& error) {
    return absl::InvalidArgumentError(absl::StrCat("loading weights: ", error.what()));
  } catch (const std::exception& error) {
    return absl::ResourceExhaustedError(absl::StrCat("loading weights: ", error.what()));
  }
}

absl::StatusOr<std::unique_ptr<DeviceQueue>> OpenQueue(const std::string& device) {
  C3PO_ASSIGN_OR_RETURN(const at::Device opened, aten::OpenDevice(device));
  if (opened.is_cpu()) return std::make_unique<cpu::CpuQueue>();
  return aten::AtenQueue::Create(opened);
}

void SetComputeThreads(int threads, bool pinned) {
  cpu::ThreadPool::SetThreads(threads, pinned);
  aten::UseOneThread();
}

int ComputeThreads() { return cpu::ThreadPool::Shared().threads(); }

}  // namespace c3po
