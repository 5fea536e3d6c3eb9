#ifndef C3PO_INDEX_SEARCH_NEIGHBOR_INDEX_H_
#define C3PO_INDEX_SEARCH_NEIGHBOR_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/search/label_filter.h"

namespace c3po {

struct LabeledDistance {
  int64_t label = 0;
  float distance = 0;  // Euclidean.

  friend bool operator==(const LabeledDistance& a, const LabeledDistance& b) {
    return a.label == b.label && a.distance == b.distance;
  }
};

// A vector that somebody else keeps, under its label.
struct LabeledVector {
  int64_t label = 0;
  absl::Span<const float> vector;
};

// Labeled vectors of one dimension, searched by Euclidean distance. For the unit-length embeddings that this service
// keeps the distance is sqrt(2 - 2 cos), in [0, 2], and orders as cosine similarity does.
//
// The interface asks for nothing that only one kind of index can do, and the vectors may lie in any memory. A search
// takes its queries as one matrix, so that an index in a device's memory copies them, runs and reads back once.
// IndexBuilder chooses the kind; nobody else asks for it.
//
// Thread-safe: searches run beside each other and beside changes; a change that returned is seen by searches begun
// later. An index copies the vectors. A search with a `filter` finds vectors of the filter's labels only, as if the
// index held no others; null: all. An index that is exact is so under any filter; one that is approximate compares all
// vectors that the filter admits where these are few. InvalidArgument from any method: a vector of another dimension or
// with a number that is not finite, k < 1, epsilon negative or NaN; the index is unchanged then. Internal: the index is
// broken, and has to be built anew.
class NeighborIndex {
 public:
  virtual ~NeighborIndex() = default;

  // AlreadyExists: the label is present. A label that was removed may be added again.
  virtual absl::Status Add(int64_t label, absl::Span<const float> vector) = 0;

  // NotFound: the label is not present.
  virtual absl::Status Remove(int64_t label) = 0;

  // The k nearest, by ascending distance, then label; fewer where fewer are there and admitted.
  absl::StatusOr<std::vector<LabeledDistance>> Search(absl::Span<const float> query, int k,
                                                      const LabelFilter* filter = nullptr) const;

  // Those of Search(query, k_max, filter) at distance <= epsilon.
  absl::StatusOr<std::vector<LabeledDistance>> SearchWithin(absl::Span<const float> query, float epsilon, int k_max,
                                                            const LabelFilter* filter = nullptr) const;

  // What Search gives for each query, bit for bit, in their order; all queries see one state of the index.
  // queries: row-major [n, dimension()], n >= 0. Needs 16 n k bytes for what it returns.
  absl::StatusOr<std::vector<std::vector<LabeledDistance>>> SearchMany(absl::Span<const float> queries, int k,
                                                                       const LabelFilter* filter = nullptr) const;

  // Whether searches may miss true neighbors. The distances of those they find are exact all the same.
  virtual bool approximate() const = 0;

  // Whether searches run in a device's memory; false from when the device fails.
  virtual bool on_device() const { return false; }

  // Whether so much was removed that a new index of the same vectors would be faster by more than building it costs.
  virtual bool WantsRebuilding() const = 0;

  // Replaces the file `path` by what IndexBuilder::Load reads. An index that is built as fast as it is read writes
  // nothing, and returns OK. `generation` is that of the store that the vectors come from.
  virtual absl::Status Save(const std::string& path, int64_t generation) const = 0;

  // An estimate, of the host's memory.
  virtual int64_t MemoryBytes() const = 0;
  virtual size_t size() const = 0;
  virtual int dimension() const = 0;

 private:
  // SearchMany of at least one query; all arguments are in their ranges.
  virtual absl::StatusOr<std::vector<std::vector<LabeledDistance>>> FindNearest(absl::Span<const float> queries, int k,
                                                                                const LabelFilter* filter) const = 0;
};

// What every index requires of a vector. `name` leads the message: "query: has 3 dimensions, not 384".
absl::Status CheckVector(absl::string_view name, absl::Span<const float> vector, int dimension);
absl::Status CheckNeighborCount(absl::string_view name, int k);

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_NEIGHBOR_INDEX_H_
