#ifndef C3PO_SERVER_COMPUTE_TARGET_ROWS_H_
#define C3PO_SERVER_COMPUTE_TARGET_ROWS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "server/compute/backend.h"

namespace c3po {

// A head's targets on the host, for backends that read heads with the same weights as one product.
struct TargetRows : TargetTokens {
  int64_t row_count = 0;
  std::vector<int64_t> rows;           // [T]
  std::vector<int64_t> tokens;         // [T], as rows of the weights
  const void* weights_data = nullptr;  // tells whose weights are the same

  static const TargetRows& Of(const TargetTokens* targets) { return static_cast<const TargetRows&>(*targets); }

  // The tokens that occur, ascending; `tokens` become their places among these.
  std::vector<int64_t> TakeDistinctTokens() {
    std::vector<int64_t> read = tokens;
    std::sort(read.begin(), read.end());
    read.erase(std::unique(read.begin(), read.end()), read.end());
    for (int64_t& token : tokens) token = std::lower_bound(read.begin(), read.end(), token) - read.begin();
    return read;
  }
};

// Where each head's rows begin among all, and its targets; then the numbers of both.
struct TargetOffsets {
  explicit TargetOffsets(absl::Span<const TargetTokens* const> heads) {
    for (const TargetTokens* head : heads) {
      rows.push_back(rows.back() + TargetRows::Of(head).row_count);
      targets.push_back(targets.back() + static_cast<int64_t>(TargetRows::Of(head).rows.size()));
    }
  }
  std::vector<int64_t> rows{0}, targets{0};  // [heads + 1]
};

// Heads with the same weights, their rows one after the other: S in all.
struct TargetGroup {
  std::vector<size_t> heads;
  int64_t rows = 0;  // S
};

// In the order of their first heads. Group: a TargetGroup with what a backend adds.
template <typename Group>
std::vector<Group> GroupByWeights(absl::Span<const TargetTokens* const> targets) {
  std::vector<Group> groups;
  for (size_t i = 0; i < targets.size(); ++i) {
    const TargetRows& head = TargetRows::Of(targets[i]);
    const auto same = [&](const TargetGroup& group) {
      return TargetRows::Of(targets[group.heads.front()]).weights_data == head.weights_data;
    };
    auto found = std::find_if(groups.begin(), groups.end(), same);
    if (found == groups.end()) found = groups.insert(found, Group{});
    found->heads.push_back(i);
    found->rows += head.row_count;
  }
  return groups;
}

}  // namespace c3po

#endif  // C3PO_SERVER_COMPUTE_TARGET_ROWS_H_
