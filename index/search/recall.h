#ifndef C3PO_INDEX_SEARCH_RECALL_H_
#define C3PO_INDEX_SEARCH_RECALL_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "index/search/neighbor_index.h"

namespace c3po {

// Recall at k of an approximate search: of the k exact nearest of some queries, the share that the search found.
struct RecallCount {
  int64_t exact = 0;
  int64_t found = 0;  // Of them; <= exact.

  void Add(const RecallCount& other) {
    exact += other.exact;
    found += other.found;
  }
  // In [0, 1]; 1 where nothing was to be found.
  double Share() const { return exact == 0 ? 1.0 : static_cast<double>(found) / static_cast<double>(exact); }
};

// Up to `count` numbers in [0, members), ascending and evenly spread. count >= 1.
std::vector<size_t> SpreadQueries(size_t members, int count);

// Compares what a search found with a scan of all members in one pass, which reads each member's vector once. Members
// are queries here: each looks for its k nearest other members.
// members: of one dimension, of different labels. queries: numbers of members. found: for each query, the k + 1 nearest
// members that the search found, the query itself included. One as near as the k-th exact neighbor counts as found,
// whichever label it has. Pure and thread-safe.
RecallCount CountRecall(absl::Span<const LabeledVector> members, absl::Span<const size_t> queries, int k,
                        absl::Span<const std::vector<LabeledDistance>> found);

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_RECALL_H_
