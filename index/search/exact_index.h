#ifndef C3PO_INDEX_SEARCH_EXACT_INDEX_H_
#define C3PO_INDEX_SEARCH_EXACT_INDEX_H_

#include <string>
#include <unordered_map>
#include <vector>

#include "index/base/mutex.h"
#include "index/search/neighbor_index.h"

namespace c3po {

// Compares the query with every vector: the oracle of the other indexes, and the faster choice for small sets (2,000
// vectors of 384 floats are 3 MB, a fraction of a millisecond). Many queries at once read each vector from memory once.
// Memory: 4 * dimension + about 50 bytes per vector.
class ExactIndex : public NeighborIndex {
 public:
  // dimension >= 1.
  explicit ExactIndex(int dimension) : dimension_(dimension) {}

  absl::Status Add(int64_t label, absl::Span<const float> vector) override;
  absl::Status Remove(int64_t label) override;
  bool approximate() const override { return false; }
  bool WantsRebuilding() const override { return false; }  // What is removed leaves no trace.
  absl::Status Save(const std::string& /*path*/, int64_t /*generation*/) const override { return absl::OkStatus(); }
  int64_t MemoryBytes() const override;  // Of the vectors alone.
  size_t size() const override;
  int dimension() const override { return dimension_; }
  bool Holds(int64_t label) const;
  // A copy of the label's vector; empty: it is not there.
  std::vector<float> Vector(int64_t label) const;

 private:
  absl::StatusOr<std::vector<std::vector<LabeledDistance>>> FindNearest(absl::Span<const float> queries, int k,
                                                                        const LabelFilter* filter) const override;
  // Of a filter's labels, ascending; the others have no row.
  std::vector<size_t> RowsOf(const LabelFilter& filter) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const int dimension_;
  mutable SharedMutex mutex_;
  std::vector<float> rows_ ABSL_GUARDED_BY(mutex_);      // [size, dimension], row-major.
  std::vector<int64_t> labels_ ABSL_GUARDED_BY(mutex_);  // [size]
  std::unordered_map<int64_t, size_t> row_of_label_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_EXACT_INDEX_H_
