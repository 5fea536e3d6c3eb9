#ifndef C3PO_INDEX_SEARCH_CUDA_DEVICE_PATHWAYS_H_
#define C3PO_INDEX_SEARCH_CUDA_DEVICE_PATHWAYS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/base/mutex.h"
#include "index/search/cuda/device_rows.h"
#include "index/search/neighbor_index.h"

namespace c3po {

// The pathways of a collection's references in a device's memory, scanned there by chosen layers. A pathway is one row,
// of a segment for each MoE layer; a view of the collection is a view of the rows, so both views share them.
//
// A change that fails (ResourceExhausted: the budget; Unavailable: the device) ends it: `usable` is false from then on,
// and whoever has the pathways scans them on the host. Thread-safe.
class DevicePathways {
 public:
  // layers, experts: of a pathway. FailedPrecondition: such rows do not fit the device's kernels.
  static absl::StatusOr<std::unique_ptr<DevicePathways>> Create(IndexDevice* device, int layers, int experts,
                                                                int views);

  bool usable() const { return usable_.load() && !device_->failed(); }

  // NewRow::row: [layers][experts]. Rows of no view are found by no search until Show gives them one.
  void Add(absl::Span<const NewRow> rows);
  struct Shown {
    int64_t label = 0;
    uint32_t views = 0;
  };
  void Show(absl::Span<const Shown> shown);
  void Remove(absl::Span<const int64_t> labels);

  // The k nearest of a view, of those that a filter admits, by sqrt(sum over chosen layers, in their order, of
  // SquaredDistance(rows[c], pathway[layers[c]])) with float32 sums, by distance, then label; fewer where there are
  // fewer. rows: [layers.size()][experts]. OutOfRange: k is beyond DeviceRows::CanFind. Unavailable, ResourceExhausted:
  // the host has to scan.
  absl::StatusOr<std::vector<LabeledDistance>> Search(absl::Span<const float> rows, absl::Span<const int> layers, int k,
                                                      int view, const LabelFilter* filter = nullptr) const;

 private:
  explicit DevicePathways(IndexDevice* device) : device_(device) {}
  void Settle(const absl::Status& status) {
    if (!status.ok()) usable_.store(false);
  }

  IndexDevice* const device_;
  std::atomic<bool> usable_ = true;
  mutable SharedMutex mutex_;
  std::unique_ptr<DeviceRows> rows_;  // Set at creation; what it holds is guarded by mutex_.
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_CUDA_DEVICE_PATHWAYS_H_
