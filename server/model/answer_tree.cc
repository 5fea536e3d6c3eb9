#include "server/model/answer_tree.h"

#include <map>
#include <utility>

namespace c3po {

AnswerTree AnswerTree::Build(absl::Span<const int32_t> prompt_end,
                             absl::Span<const std::vector<int32_t>> continuations) {
  AnswerTree tree;
  tree.prompt_rows = static_cast<int>(prompt_end.size());
  for (const int32_t token : prompt_end) {
    tree.parents.push_back(tree.rows() - 1);
    tree.depths.push_back(tree.rows());
    tree.tokens.push_back(token);
  }
  std::map<std::pair<int, int32_t>, int> children;  // (row, token) -> row
  for (size_t c = 0; c < continuations.size(); ++c) {
    const std::vector<int32_t>& continuation = continuations[c];
    tree.lengths.push_back(static_cast<int>(continuation.size()));
    int row = tree.prompt_rows - 1;
    for (size_t t = 0; t < continuation.size(); ++t) {
      tree.targets.push_back({row, continuation[t], static_cast<int>(c)});
      if (t + 1 == continuation.size()) break;  // The last token is predicted, not fed back.
      const auto [child, added] = children.try_emplace({row, continuation[t]}, tree.rows());
      if (added) {
        tree.tokens.push_back(continuation[t]);
        tree.parents.push_back(row);
        tree.depths.push_back(tree.depths[row] + 1);
      }
      row = child->second;
    }
  }
  return tree;
}

}  // namespace c3po
