#ifndef C3PO_INDEX_SEARCH_CUDA_DEVICE_ROWS_H_
#define C3PO_INDEX_SEARCH_CUDA_DEVICE_ROWS_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/search/cuda/index_device.h"
#include "index/search/label_filter.h"
#include "index/search/neighbor_index.h"

namespace c3po {

// How rows look. A row is `segments` segments of `dimension` floats, one behind the other.
struct RowShape {
  int segments = 1;
  int dimension = 0;
  int views = 1;            // Each admits some of the rows; at most 32.
  bool reuse_rows = true;   // A new row may take a removed one's place. False: row numbers are the order of adding.
  int64_t halves_from = 0;  // With room for so many rows they are kept in float16 as well; 0: never. One segment only.

  // Whether a device can hold and scan such rows at all.
  bool Fits(const cuda::DeviceProperties& properties) const;
};

// A row to be added. `row` has segments * dimension floats; bit v of `views`: view v admits it.
struct NewRow {
  int64_t label = 0;
  absl::Span<const float> row;
  uint32_t views = 1;
};

// Labeled rows in a device's memory: vectors of an index, pathways of a collection. Room grows by doubling; a search
// holds the memory that it began with. Rows are searched by scan.h's kernels.
//
// Not thread-safe: methods that change anything need their owner's lock exclusively, const ones shared. A failed change
// (ResourceExhausted: beyond the budget; Unavailable: the device failed) leaves the rows as they were, or a failed
// device.
class DeviceRows {
 public:
  // `shape` Fits.
  static absl::StatusOr<std::unique_ptr<DeviceRows>> Create(IndexDevice* device, const RowShape& shape);

  // Room for `count` rows in all, before it is needed.
  absl::Status Reserve(IndexChange& change, int64_t count);
  bool HasRoom() const { return !free_rows_.empty() || row_count_ < capacity_; }  // For one more.
  // Their labels are not present and differ. Makes room.
  absl::Status Add(IndexChange& change, absl::Span<const NewRow> rows);
  // Of labels that are present.
  void Remove(IndexChange& change, int64_t label);
  void SetViews(IndexChange& change, int64_t label, uint32_t views);
  bool Holds(int64_t label) const { return row_of_label_.count(label) > 0; }

  // Whether the kernels find so many at once.
  static bool CanFind(int64_t k) { return k <= cuda::kScanNeighborsMax; }

  // Which rows a search may find: those of a view, of a filter's labels where there is a filter. For one state of the
  // rows.
  struct Admitted {
    int view = 0;
    int64_t count = 0;
    bool filtered = false;
    std::vector<uint32_t> words;  // A bit a row, as in Memory; empty without a filter.
    int64_t bytes() const { return static_cast<int64_t>(words.size()) * 4; }
  };
  Admitted Admit(const LabelFilter* filter, int view) const;

  // The rows nearest to each query, by ascending squared distance, then label. Enqueues copies and kernels on the slot;
  // after slot.Wait, outside of the lock, ReadFound gives them. Ten or a million rows: one copy in, one out.
  // queries: [n][segments.size() * dimension]; segments: numbers of those compared, in the order of the sum. 1 <= k;
  // CanFind(k). n <= kQueriesMax. A row at least is admitted.
  struct PendingScan {
    int queries = 0;
    int k = 0;
    int expected = 0;  // Of each query.
    bool halves = false;
  };
  absl::StatusOr<PendingScan> EnqueueScan(SearchSlot& slot, absl::Span<const float> queries,
                                          absl::Span<const int> segments, int k, const Admitted& admitted) const;
  absl::StatusOr<std::vector<std::vector<LabeledDistance>>> ReadFound(const SearchSlot& slot,
                                                                      const PendingScan& pending) const;
  static constexpr int kQueriesMax = 512;

  int64_t rows() const { return row_count_; }  // Also removed ones.
  int64_t capacity() const { return capacity_; }
  int row_stride() const { return row_stride_; }
  cuda::Event changed() const { return changed_.get(); }
  IndexDevice& device() const { return *device_; }

  // What the kernels read; it lives as long as somebody holds it.
  struct Memory {
    IndexMemory rows, halves, labels, admitted;  // admitted: [views][capacity / 32]
  };
  std::shared_ptr<const Memory> memory() const { return memory_; }
  // In device memory: those of a filter where `sent` lies, which the slot's block of input has, else the view's own.
  const uint32_t* WordsOf(const Admitted& admitted, const std::byte* sent) const {
    return admitted.filtered ? reinterpret_cast<const uint32_t*>(sent)
                             : memory_->admitted.as<uint32_t>() + capacity_ / 32 * admitted.view;
  }

 private:
  DeviceRows(IndexDevice* device, const RowShape& shape);
  absl::Status Grow(IndexChange& change, int64_t capacity);
  void PlaceRow(IndexChange& change, int64_t row, const NewRow& added);
  void MarkViews(int64_t row, uint32_t views, std::vector<int64_t>& words);
  void WriteViews(IndexChange& change, std::vector<int64_t>& words);
  void NarrowRows(IndexChange& change, int64_t first, int64_t count) const;
  bool UsesHalves(absl::Span<const int> segments, int k) const;
  int64_t Blocks(int queries, int queries_at_once, int rows_of_step, int kept) const;

  struct ScanPlan;
  absl::StatusOr<ScanPlan> Plan(int queries, int segments, int k, bool halves) const;
  absl::Status Launch(SearchSlot& slot, const ScanPlan& plan, int queries, absl::Span<const int> segments, int k,
                      const Admitted& admitted) const;

  IndexDevice* const device_;
  const RowShape shape_;
  const int segment_stride_;  // Floats, a multiple of 4.
  const int row_stride_;
  const int half_stride_;
  DeviceEvent changed_;
  std::shared_ptr<const Memory> memory_;
  int64_t capacity_ = 0;                  // A multiple of 32.
  int64_t row_count_ = 0;                 // Rows used so far, free ones included.
  std::vector<uint32_t> views_;           // [rows]: whether each view admits the row.
  std::vector<int64_t> admitted_counts_;  // [views]
  std::unordered_map<int64_t, int64_t> row_of_label_;
  std::vector<int64_t> free_rows_;
  double longest_ = 0;      // The greatest length of a row so far.
  bool narrowable_ = true;  // Every number so far is in the range of float16.
  mutable std::atomic<int64_t> half_queries_ = 0, unproven_queries_ = 0;
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_CUDA_DEVICE_ROWS_H_
