#ifndef C3PO_INDEX_SEARCH_CUDA_DEVICE_INDEX_H_
#define C3PO_INDEX_SEARCH_CUDA_DEVICE_INDEX_H_

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "index/base/mutex.h"
#include "index/search/cuda/device_graph.h"
#include "index/search/cuda/device_rows.h"
#include "index/search/cuda/index_device.h"
#include "index/search/exact_index.h"
#include "index/search/hnsw_index.h"
#include "index/search/neighbor_index.h"

namespace c3po {

// An index in a device's memory beside one on the host, of the same vectors. Searches run on the device:
//   of an ExactIndex by the scan of scan.h: the same neighbors and the same bits of distances;
//   of a HnswIndex by the beam search of beam_search.h on the graph that hnswlib linked: the same neighbors but for
//   ties, asked for as HnswIndex asks hnswlib: for more where tombstones crowd or a filter admits few, and all nodes
//   are compared where that is no more work.
// A filter goes to the device as a bit a row, in the one copy of its search.
// The host's index answers what the device cannot: k beyond DeviceRows::CanFind, a graph's candidates beyond
// kBeamWidthMax, everything once the device has failed. It also links what is added, saves, and says when the index
// WantsRebuilding.
//
// A search enqueues its batch of queries under a shared lock: one copy in, its kernels, one copy out; and waits once,
// without the lock. A change enqueues, under the lock alone, one copy and one kernel that writes it in place, behind
// the searches enqueued before it and before those after. Where room is made the old memory stays for searches under
// way.
//
// Memory on the device: rows of 4 * dimension bytes (6 with float16 rows), 8.1 for label and bit, in a graph 8 * m + 4
// and upper layers more; room for up to twice as many vectors as there are. Add may also return ResourceExhausted: the
// device's budget is used up; the index is unchanged then.
class DeviceIndex : public NeighborIndex {
 public:
  static constexpr int64_t kHalvesFrom = 1 << 18;  // Rows that are worth a float16 copy, by default.

  // Whether vectors of such a dimension can be searched on the device.
  static bool Fits(const IndexDevice& device, int dimension);

  // Takes `host` when it succeeds. `host` holds exactly these vectors. Their dimension Fits. ResourceExhausted: they
  // exceed the budget. Unavailable: the device failed.
  static absl::StatusOr<std::unique_ptr<DeviceIndex>> Create(IndexDevice* device, std::unique_ptr<ExactIndex>& host,
                                                             absl::Span<const LabeledVector> vectors,
                                                             int64_t halves_from = kHalvesFrom);
  // Also DataLoss: the graph does not pass CheckHnswGraph.
  static absl::StatusOr<std::unique_ptr<DeviceIndex>> Create(IndexDevice* device, std::unique_ptr<HnswIndex>& host,
                                                             const HnswOptions& options);

  absl::Status Add(int64_t label, absl::Span<const float> vector) override;
  absl::Status Remove(int64_t label) override;
  bool approximate() const override { return host_->approximate(); }
  bool on_device() const override { return on_device_.load() && !device_->failed(); }
  bool WantsRebuilding() const override { return host_->WantsRebuilding(); }
  absl::Status Save(const std::string& path, int64_t generation) const override {
    return host_->Save(path, generation);
  }
  int64_t MemoryBytes() const override { return host_->MemoryBytes(); }
  size_t size() const override { return host_->size(); }
  int dimension() const override { return host_->dimension(); }

 private:
  DeviceIndex(IndexDevice* device, const HnswOptions& options) : device_(device), options_(options) {}

  absl::StatusOr<std::vector<std::vector<LabeledDistance>>> FindNearest(absl::Span<const float> queries, int k,
                                                                        const LabelFilter* filter) const override;
  absl::Status MakeRoom() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status AddOnDevice(int64_t label, absl::Span<const float> vector, const HnswAddition& addition)
      ABSL_LOCKS_EXCLUDED(mutex_);

  // A batch on its way through a slot.
  struct Batch {
    absl::Span<const float> queries;
    int k = 0;           // As many as are wanted and present.
    int candidates = 0;  // Of a beam; 0: all rows are compared.
    DeviceRows::PendingScan scan;
  };
  struct Answers {
    std::vector<std::vector<LabeledDistance>> found;
    std::vector<size_t> unanswered;  // Queries whose candidates had fewer than k live ones.
  };
  absl::StatusOr<std::vector<std::vector<LabeledDistance>>> FindOnDevice(absl::Span<const float> queries, int k,
                                                                         const LabelFilter* filter) const
      ABSL_LOCKS_EXCLUDED(mutex_);
  absl::StatusOr<Answers> FindWidening(SearchSlot& slot, absl::Span<const float> queries, int k,
                                       const DeviceRows::Admitted& admitted) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // `widening`: how many times the candidates that a search asks for first.
  absl::StatusOr<Batch> Enqueue(SearchSlot& slot, absl::Span<const float> queries, int k,
                                const DeviceRows::Admitted& admitted, size_t widening) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::Status EnqueueBeam(SearchSlot& slot, const Batch& batch, const DeviceRows::Admitted& admitted) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<Answers> Collect(SearchSlot& slot, const Batch& batch) const;

  IndexDevice* const device_;
  std::unique_ptr<NeighborIndex> host_;  // Set at creation.
  HnswIndex* graph_host_ = nullptr;      // Of host_; null: an exact one.
  const HnswOptions options_;
  std::atomic<bool> on_device_ = true;  // False for good: device and host disagree.

  Mutex change_mutex_ ABSL_ACQUIRED_BEFORE(mutex_);  // One change at a time, on host and device.
  mutable SharedMutex mutex_;
  std::unique_ptr<DeviceRows> rows_;    // Set at creation; what they hold is guarded by mutex_.
  std::unique_ptr<DeviceGraph> graph_;  // The same; null: exact.
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_CUDA_DEVICE_INDEX_H_
