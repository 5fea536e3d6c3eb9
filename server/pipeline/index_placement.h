#ifndef C3PO_SERVER_PIPELINE_INDEX_PLACEMENT_H_
#define C3PO_SERVER_PIPELINE_INDEX_PLACEMENT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "index/search/cuda/index_device.h"
#include "server/metrics/metrics.h"

namespace c3po {

// What libc3po_cuda.so gives of a GPU for indexes.
struct IndexDeviceParts {
  cuda::Runtime* runtime = nullptr;
  const cuda::IndexKernels* kernels = nullptr;
};
// FailedPrecondition, one sentence: there is no such library, or no GPU.
absl::StatusOr<IndexDeviceParts> OpenIndexDeviceParts();

// The budget of references where nobody set one: a sixteenth of the GPU's memory, within 64 MiB and 8 GiB.
int64_t IndexBudget(int64_t device_bytes);

// Where references are searched, by the words of --index-device: "cpu": null, nothing is opened. "cuda": in a GPU's
// memory, or the error that says why not. "auto": as the model's device, `model_device`; null where that is a GPU and
// cannot be had, which the log tells (index_on_cpu). `metrics` tell what the device counts; it outlives their last
// exposition. budget_bytes: that references may take; 0: IndexBudget.
//
// Where the model computes on the GPU, both have one record of its failure: an error that either meets drains the
// server. Where the model is on the CPU, a failed GPU leaves the server as it was: references are searched on the CPU.
absl::StatusOr<std::unique_ptr<IndexDevice>> PlaceIndex(
    const std::string& index_device, const std::string& model_device, int64_t budget_bytes, Metrics* metrics,
    const std::function<absl::StatusOr<IndexDeviceParts>()>& open = OpenIndexDeviceParts);

// Once all references are loaded: OK, or ResourceExhausted where they were to be on the GPU ("cuda") and some have no
// room there; it names the budget's flag and the sums. With "auto" the log tells (index_memory_short).
absl::Status CheckIndexRoom(const std::string& index_device, const IndexDevice* device);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_INDEX_PLACEMENT_H_
