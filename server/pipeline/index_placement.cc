#include "server/pipeline/index_placement.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "index/base/cuda/library.h"
#include "index/base/device_failure.h"
#include "index/base/status_macros.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

void WatchIndexDevice(const IndexDevice& device, Metrics* metrics) {
  metrics->WatchIndexDevice([&device] {
    const IndexDeviceCounts counts = device.counts();
    Metrics::IndexDeviceFigures figures;
    figures.bytes = device.bytes_in_use();
    figures.budget_bytes = device.budget_bytes();
    figures.failed = device.failed();
    figures.device_queries = counts.device_queries;
    figures.host_queries = counts.host_queries;
    figures.refusals = counts.refusals;
    return figures;
  });
}

}  // namespace

absl::StatusOr<IndexDeviceParts> OpenIndexDeviceParts() {
  IndexDeviceParts parts;
  C3PO_ASSIGN_OR_RETURN(parts.runtime, cuda::OpenRuntime());
  const absl::StatusOr<cuda::Library>& library = cuda::OpenLibrary();
  if (!library.ok()) return library.status();
  C3PO_ASSIGN_OR_RETURN(parts.kernels, library->Kernels<cuda::IndexKernels>("c3po_index_kernels"));
  return parts;
}

int64_t IndexBudget(int64_t device_bytes) { return std::clamp(device_bytes / 16, int64_t{64} << 20, int64_t{8} << 30); }

absl::StatusOr<std::unique_ptr<IndexDevice>> PlaceIndex(const std::string& index_device,
                                                        const std::string& model_device, int64_t budget_bytes,
                                                        Metrics* metrics,
                                                        const std::function<absl::StatusOr<IndexDeviceParts>()>& open) {
  const bool wanted = index_device == "cuda";
  if (!wanted && (index_device == "cpu" || model_device == "cpu")) return std::unique_ptr<IndexDevice>();
  const auto opened = [&]() -> absl::StatusOr<std::unique_ptr<IndexDevice>> {
    C3PO_ASSIGN_OR_RETURN(const IndexDeviceParts parts, open());
    DeviceRecord* const record = model_device == "cuda" ? &ComputingDevice() : nullptr;
    if (budget_bytes > 0) return IndexDevice::Open(parts.runtime, parts.kernels, budget_bytes, record);
    cuda::DeviceProperties properties;
    if (const cuda::Error error = parts.runtime->Properties(&properties); error != nullptr) {
      return absl::UnavailableError(error);
    }
    return IndexDevice::Open(parts.runtime, parts.kernels, IndexBudget(properties.memory_bytes), record);
  };
  absl::StatusOr<std::unique_ptr<IndexDevice>> device = opened();
  if (device.ok()) {
    WatchIndexDevice(**device, metrics);
    Log(LogLevel::kInfo, "index_on_gpu", "",
        {{"name", std::string((*device)->properties().name)}, {"budget_bytes", (*device)->budget_bytes()}});
    return device;
  }
  if (wanted)
    return absl::Status(device.status().code(), absl::StrCat("--index-device cuda: ", device.status().message()));
  Log(LogLevel::kWarning, "index_on_cpu", "", {{"reason", std::string(device.status().message())}});
  return std::unique_ptr<IndexDevice>();
}

absl::Status CheckIndexRoom(const std::string& index_device, const IndexDevice* device) {
  if (device == nullptr || device->counts().refusals == 0) return absl::OkStatus();
  const std::string what = absl::StrCat("references take more of the GPU's memory than --index-memory-mb ",
                                        device->budget_bytes() >> 20, ": ", device->last_refusal());
  if (index_device == "cuda") return absl::ResourceExhaustedError(absl::StrCat("--index-device cuda: ", what));
  Log(LogLevel::kWarning, "index_memory_short", "", {{"reason", what}});
  return absl::OkStatus();
}

}  // namespace c3po
