#ifndef C3PO_INDEX_SEARCH_LABEL_FILTER_H_
#define C3PO_INDEX_SEARCH_LABEL_FILTER_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/types/span.h"

namespace c3po {

// Which vectors a search may find: those of these labels, as far as an index holds them. Whoever knows what labels
// stand for evaluates its condition once and keeps the filter for as many searches as it likes. A scan looks up each
// label; a graph on the host asks about its candidates alone. Immutable; thread-safe.
class LabelFilter {
 public:
  // In any order; a label that is named twice counts once.
  explicit LabelFilter(std::vector<int64_t> labels) : labels_(std::move(labels)) {
    std::sort(labels_.begin(), labels_.end());
    labels_.erase(std::unique(labels_.begin(), labels_.end()), labels_.end());
  }

  bool Admits(int64_t label) const { return std::binary_search(labels_.begin(), labels_.end(), label); }
  // Ascending.
  absl::Span<const int64_t> labels() const { return labels_; }

 private:
  std::vector<int64_t> labels_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_LABEL_FILTER_H_
