#ifndef C3PO_INDEX_SEARCH_NEAREST_LIST_H_
#define C3PO_INDEX_SEARCH_NEAREST_LIST_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "index/search/neighbor_index.h"

namespace c3po {

// Collects the `capacity` nearest of the labels offered: a heap whose top is the farthest kept. Ties go to the lower
// label. Not thread-safe.
class NearestList {
 public:
  explicit NearestList(size_t capacity) : capacity_(capacity) {}

  void Offer(float squared_distance, int64_t label) {
    const std::pair<float, int64_t> candidate(squared_distance, label);
    if (heap_.size() == capacity_) {
      if (capacity_ == 0 || !(candidate < heap_.front())) return;
      std::pop_heap(heap_.begin(), heap_.end());
      heap_.pop_back();
    }
    heap_.push_back(candidate);
    std::push_heap(heap_.begin(), heap_.end());
  }

  // Ascending; the list is empty afterwards. Distances are square roots of those offered.
  std::vector<LabeledDistance> Take() {
    std::sort(heap_.begin(), heap_.end());
    std::vector<LabeledDistance> sorted;
    sorted.reserve(heap_.size());
    for (const auto& [squared, label] : heap_) sorted.push_back({label, std::sqrt(squared)});
    heap_.clear();
    return sorted;
  }

 private:
  const size_t capacity_;
  std::vector<std::pair<float, int64_t>> heap_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_NEAREST_LIST_H_
