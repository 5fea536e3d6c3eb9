#ifndef C3PO_INDEX_SEARCH_NEIGHBOR_INDEX_H_
#define C3PO_INDEX_SEARCH_NEIGHBOR_INDEX_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

struct LabeledDistance {
  int64_t label = 0;
  float distance = 0;  // Euclidean.

  friend bool operator==(const LabeledDistance& a, const LabeledDistance& b) {
    return a.label == b.label && a.distance == b.distance;
  }
};

// Labeled vectors of one dimension, searched by Euclidean distance. For the unit-length embeddings that this service
// keeps the distance is sqrt(2 - 2 cos), in [0, 2], and orders as cosine similarity does.
//
// Thread-safe: searches run beside each other and beside changes; a change that returned is seen by searches begun
// later. An index copies the vectors. InvalidArgument from any method: a vector of another dimension or with a number
// that is not finite, k < 1, epsilon negative or NaN; the index is unchanged then.
class NeighborIndex {
 public:
  virtual ~NeighborIndex() = default;

  // AlreadyExists: the label is present. A label that was removed may be added again.
  virtual absl::Status Add(int64_t label, absl::Span<const float> vector) = 0;

  // NotFound: the label is not present.
  virtual absl::Status Remove(int64_t label) = 0;

  // The min(k, size()) nearest, by ascending distance, then label.
  virtual absl::StatusOr<std::vector<LabeledDistance>> Search(absl::Span<const float> query, int k) const = 0;

  // Those of Search(query, k_max) at distance <= epsilon.
  absl::StatusOr<std::vector<LabeledDistance>> SearchWithin(absl::Span<const float> query, float epsilon,
                                                            int k_max) const;

  virtual size_t size() const = 0;
  virtual int dimension() const = 0;
};

// What every index requires of a vector. `name` leads the message: "query: has 3 dimensions, not 384".
absl::Status CheckVector(absl::string_view name, absl::Span<const float> vector, int dimension);
absl::Status CheckNeighborCount(absl::string_view name, int k);

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_NEIGHBOR_INDEX_H_
