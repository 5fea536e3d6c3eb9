#ifndef C3PO_TESTS_SERVER_COMPUTE_CUDA_TREE_TRIAL_H_
#define C3PO_TESTS_SERVER_COMPUTE_CUDA_TREE_TRIAL_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "server/compute/cuda/tree_attention.h"
#include "tests/host_cuda/device_array.h"
#include "tests/server/compute/cuda/attention_trial.h"

namespace c3po::cuda {

inline constexpr int kBlockPositions = 8;

inline size_t At(int64_t i) { return static_cast<size_t>(i); }

// A case: its prefix's keys and values, and a tree.
struct Case {
  int prefix = 0;
  std::vector<int> parents;         // -1 for row 0
  std::vector<float> keys, values;  // [kv_heads, prefix, dim]
};

inline Case RandomCase(const HeadTrial& trial, bool bfloat16, int prefix, int rows, std::mt19937& random) {
  Case one;
  one.prefix = prefix;
  for (int r = 0; r < rows; ++r)
    one.parents.push_back(r == 0 ? -1 : static_cast<int>(random() % static_cast<unsigned>(r)));
  one.keys = Normal(random, At(trial.kv_heads * prefix * trial.head_dim));
  one.values = Normal(random, At(trial.kv_heads * prefix * trial.value_dim));
  for (std::vector<float>* all : {&one.keys, &one.values}) {
    for (float& x : *all) x = bfloat16 ? FromBFloat16(ToNearestBFloat16(x)) : x;
  }
  return one;
}

// The rows of several cases, on the host and on the device.
class Trees {
 public:
  Trees(const HeadTrial& trial, bool bfloat16, const std::vector<Case>& cases)
      : trial_(trial), bfloat16_(bfloat16), cases_(cases) {
    std::vector<int32_t> row_case, prefixes, block_begin, descendant_begin;
    std::vector<TreeDescendant> descendants;
    ancestor_begin_ = {0};
    column_begin_ = {0};
    for (size_t s = 0; s < cases.size(); ++s) {
      const int first = static_cast<int>(row_case.size());
      prefixes.push_back(cases[s].prefix);
      block_begin.push_back(static_cast<int32_t>(key_blocks_.size()));
      AppendBlocks(cases[s].keys, cases[s].prefix, trial.head_dim, key_blocks_);
      AppendBlocks(cases[s].values, cases[s].prefix, trial.value_dim, value_blocks_);
      for (size_t m = 0; m < cases[s].parents.size(); ++m) {
        row_case.push_back(static_cast<int32_t>(s));
        for (int a = static_cast<int>(m); a >= 0; a = cases[s].parents[At(a)]) ancestors_.push_back(first + a);
        ancestor_begin_.push_back(static_cast<int32_t>(ancestors_.size()));
        column_begin_.push_back(column_begin_.back() + cases[s].prefix + ancestor_begin_[ancestor_begin_.size() - 1] -
                                ancestor_begin_[ancestor_begin_.size() - 2]);
      }
    }
    rows_ = static_cast<int>(row_case.size());
    row_case_ = row_case;
    for (int row = 0; row < rows_; ++row) {
      descendant_begin.push_back(static_cast<int32_t>(descendants.size()));
      for (int other = 0; other < rows_; ++other) {
        for (int i = ancestor_begin_[At(other)]; i < ancestor_begin_[At(other + 1)]; ++i) {
          if (ancestors_[At(i)] == row) descendants.push_back({other, i - ancestor_begin_[At(other)]});
        }
      }
    }
    descendant_begin.push_back(static_cast<int32_t>(descendants.size()));
    device_ = std::make_unique<Device>(row_case, prefixes, block_begin, ancestor_begin_, ancestors_, column_begin_,
                                       descendant_begin, descendants, Pointers(key_blocks_), Pointers(value_blocks_));
  }

  int rows() const { return rows_; }
  int64_t columns() const { return column_begin_.back(); }
  int64_t column_begin(int row) const { return column_begin_[At(row)]; }
  int count(int row) const { return static_cast<int>(column_begin_[At(row + 1)] - column_begin_[At(row)]); }
  int prefix(int row) const { return cases_[At(row_case_[At(row)])].prefix; }
  int ancestor(int row, int i) const { return ancestors_[At(ancestor_begin_[At(row)] + i)]; }

  // Column j of a row at a key-value head: from the prefix, or from `own` [rows, kv_heads, dim].
  const float* Column(int row, int j, int g, bool values, const std::vector<float>& own) const {
    const Case& one = cases_[At(row_case_[At(row)])];
    const int dim = values ? trial_.value_dim : trial_.head_dim;
    if (j < one.prefix) return (values ? one.values : one.keys).data() + (g * one.prefix + j) * dim;
    return own.data() + (ancestor(row, j - one.prefix) * trial_.kv_heads + g) * dim;
  }

  TreeTables Rows() const {
    TreeTables rows;
    rows.rows = rows_;
    rows.row_case = device_->row_case.data();
    rows.prefix_lengths = device_->prefixes.data();
    rows.block_begin = device_->block_begin.data();
    rows.ancestor_begin = device_->ancestor_begin.data();
    rows.ancestors = device_->ancestors.data();
    rows.column_begin = device_->column_begin.data();
    rows.descendant_begin = device_->descendant_begin.data();
    rows.descendants = device_->descendants.data();
    return rows;
  }
  TreePrefixBlocks Prefix() const {
    return {device_->keys.data(), device_->values.data(), kBlockPositions, bfloat16_ ? 1 : 0};
  }

 private:
  using Blocks = std::vector<std::unique_ptr<host_cuda::DeviceArray<uint8_t>>>;

  // Slots behind the prefix keep their NaN.
  void AppendBlocks(const std::vector<float>& from, int prefix, int dim, Blocks& blocks) {
    const int width = CacheWidth(dim), bytes = bfloat16_ ? 2 : 4;
    for (int begin = 0; begin < prefix; begin += kBlockPositions) {
      std::vector<uint8_t> block =
          host_cuda::UnknownValues<uint8_t>(At(trial_.kv_heads * kBlockPositions * width * bytes));
      for (int g = 0; g < trial_.kv_heads; ++g) {
        for (int j = begin; j < std::min(prefix, begin + kBlockPositions); ++j) {
          for (int i = 0; i < width; ++i) {
            const float x = i < dim ? from[At((g * prefix + j) * dim + i)] : 0.0f;
            uint8_t* const to = block.data() + ((g * kBlockPositions + j - begin) * width + i) * bytes;
            const uint16_t bits = ToNearestBFloat16(x);
            std::memcpy(to, bfloat16_ ? static_cast<const void*>(&bits) : &x, At(bytes));
          }
        }
      }
      blocks.push_back(std::make_unique<host_cuda::DeviceArray<uint8_t>>(block));
    }
  }
  static std::vector<const void*> Pointers(const Blocks& blocks) {
    std::vector<const void*> pointers;
    for (const auto& block : blocks) pointers.push_back(block->data());
    return pointers;
  }

  struct Device {
    Device(const std::vector<int32_t>& a, const std::vector<int32_t>& b, const std::vector<int32_t>& c,
           const std::vector<int32_t>& d, const std::vector<int32_t>& e, const std::vector<int64_t>& f,
           const std::vector<int32_t>& g, const std::vector<TreeDescendant>& h, const std::vector<const void*>& k,
           const std::vector<const void*>& v)
        : row_case(a),
          prefixes(b),
          block_begin(c),
          ancestor_begin(d),
          ancestors(e),
          column_begin(f),
          descendant_begin(g),
          descendants(h),
          keys(k),
          values(v) {}
    host_cuda::DeviceArray<int32_t> row_case, prefixes, block_begin, ancestor_begin, ancestors;
    host_cuda::DeviceArray<int64_t> column_begin;
    host_cuda::DeviceArray<int32_t> descendant_begin;
    host_cuda::DeviceArray<TreeDescendant> descendants;
    host_cuda::DeviceArray<const void*> keys, values;
  };

  HeadTrial trial_;
  bool bfloat16_;
  std::vector<Case> cases_;
  int rows_ = 0;
  std::vector<int32_t> row_case_, ancestor_begin_, ancestors_;
  std::vector<int64_t> column_begin_;
  Blocks key_blocks_, value_blocks_;
  std::unique_ptr<Device> device_;
};

}  // namespace c3po::cuda

#endif  // C3PO_TESTS_SERVER_COMPUTE_CUDA_TREE_TRIAL_H_
