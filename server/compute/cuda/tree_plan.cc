#include "server/compute/cuda/tree_plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace c3po::cuda {

std::shared_ptr<void> DeviceArrays::Send(DevicePool& memory, HostCopies& copies) const {
  const auto bytes = static_cast<int64_t>(bytes_.size());
  std::shared_ptr<void> piece = memory.Take(bytes);
  copies.Upload(bytes_.data(), bytes, piece.get());
  return piece;
}

void TreePlan::Add(const TreeShape& shape, const std::vector<PrefixBlocks>& prefix_blocks) {
  const auto first = static_cast<int32_t>(rows()), case_index = static_cast<int32_t>(prefix_lengths_.size());
  if (blocks_.empty()) blocks_.resize(prefix_blocks.size());
  if (blocks_.size() != prefix_blocks.size()) throw std::invalid_argument("trees of other layers");
  prefix_lengths_.push_back(static_cast<int32_t>(shape.prefix));
  block_begin_.push_back(blocks_.empty() ? 0 : static_cast<int32_t>(blocks_[0].keys.size()));
  for (size_t i = 0; i < blocks_.size(); ++i) {
    blocks_[i].keys.insert(blocks_[i].keys.end(), prefix_blocks[i].keys.begin(), prefix_blocks[i].keys.end());
    blocks_[i].values.insert(blocks_[i].values.end(), prefix_blocks[i].values.begin(), prefix_blocks[i].values.end());
  }
  for (int64_t m = 0; m < shape.rows(); ++m) {
    for (int64_t a = m; a >= 0; a = shape.parents[static_cast<size_t>(a)]) {
      ancestors_.push_back(first + static_cast<int32_t>(a));
    }
    const auto end = static_cast<int32_t>(ancestors_.size());
    columns_.push_back(columns_.back() + shape.prefix + end - ancestor_begin_.back());
    ancestor_begin_.push_back(end);
    row_case_.push_back(case_index);
    positions_.push_back({0, static_cast<int32_t>(shape.prefix + shape.depths[static_cast<size_t>(m)])});
  }
}

void TreePlan::Send(int first_layer, int block_positions, bool bfloat16, DevicePool& memory, HostCopies& copies) {
  first_layer_ = first_layer;
  block_positions_ = block_positions;
  bfloat16_ = bfloat16;
  // Who has a row among its ancestors, by that row.
  std::vector<int32_t> descendant_begin(row_case_.size() + 1);
  for (const int32_t ancestor : ancestors_) ++descendant_begin[static_cast<size_t>(ancestor) + 1];
  for (size_t r = 0; r < row_case_.size(); ++r) descendant_begin[r + 1] += descendant_begin[r];
  std::vector<TreeDescendant> descendants(ancestors_.size());
  std::vector<int32_t> next(descendant_begin.begin(), descendant_begin.end() - 1);
  for (int32_t r = 0; r < static_cast<int32_t>(row_case_.size()); ++r) {
    for (int32_t i = ancestor_begin_[static_cast<size_t>(r)]; i < ancestor_begin_[static_cast<size_t>(r) + 1]; ++i) {
      const auto ancestor = static_cast<size_t>(ancestors_[static_cast<size_t>(i)]);
      descendants[static_cast<size_t>(next[ancestor]++)] = {r, i - ancestor_begin_[static_cast<size_t>(r)]};
    }
  }
  DeviceArrays arrays;
  at_.row_case = arrays.Add(row_case_);
  at_.prefix_lengths = arrays.Add(prefix_lengths_);
  at_.block_begin = arrays.Add(block_begin_);
  at_.ancestor_begin = arrays.Add(ancestor_begin_);
  at_.ancestors = arrays.Add(ancestors_);
  at_.columns = arrays.Add(columns_);
  at_.descendant_begin = arrays.Add(descendant_begin);
  at_.descendants = arrays.Add(descendants);
  at_.positions = arrays.Add(positions_);
  for (const PrefixBlocks& blocks : blocks_) {
    at_.keys.push_back(arrays.Add(blocks.keys));
    at_.values.push_back(arrays.Add(blocks.values));
  }
  device_ = arrays.Send(memory, copies);
}

TreeTables TreePlan::tree() const {
  TreeTables tree;
  tree.rows = static_cast<int32_t>(rows());
  tree.row_case = At<int32_t>(device_, at_.row_case);
  tree.prefix_lengths = At<int32_t>(device_, at_.prefix_lengths);
  tree.block_begin = At<int32_t>(device_, at_.block_begin);
  tree.ancestor_begin = At<int32_t>(device_, at_.ancestor_begin);
  tree.ancestors = At<int32_t>(device_, at_.ancestors);
  tree.column_begin = At<int64_t>(device_, at_.columns);
  tree.descendant_begin = At<int32_t>(device_, at_.descendant_begin);
  tree.descendants = At<TreeDescendant>(device_, at_.descendants);
  return tree;
}

TreePrefixBlocks TreePlan::Prefix(int layer) const {
  const size_t i = static_cast<size_t>(layer - first_layer_);
  if (layer < first_layer_ || i >= blocks_.size()) throw std::invalid_argument("a tree has no prefix in this layer");
  return {At<const void*>(device_, at_.keys[i]), At<const void*>(device_, at_.values[i]), block_positions_,
          bfloat16_ ? 1 : 0};
}

}  // namespace c3po::cuda
