#include "server/compute/aten/padded_trees.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "server/compute/aten/matrix_tensors.h"

namespace c3po::aten {
namespace {

// Of some trees: what they have themselves, and what they have together in one product.
struct GroupSizes {
  int64_t count = 0, rows = 0, columns = 0, pairs = 0;
  int64_t rows_max = 0, prefix_max = 0;

  void Add(const TreeShape& tree) {
    const int64_t width = tree.prefix + tree.rows();
    ++count;
    rows += tree.rows();
    columns += width;
    pairs += tree.rows() * width;
    rows_max = std::max(rows_max, tree.rows());
    prefix_max = std::max(prefix_max, tree.prefix);
  }
  bool PadsLittle() const {
    const int64_t width = prefix_max + rows_max;
    const auto little = [](int64_t padded, int64_t own) { return 2 * padded <= 3 * own; };
    return little(count * rows_max, rows) && little(count * width, columns) && little(count * rows_max * width, pairs);
  }
};

}  // namespace

std::vector<std::vector<size_t>> GroupTrees(absl::Span<const TreeShape> trees) {
  std::vector<size_t> order(trees.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto pairs = [&](size_t s) { return trees[s].rows() * (trees[s].prefix + trees[s].rows()); };
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return pairs(a) < pairs(b); });
  std::vector<std::vector<size_t>> groups;
  GroupSizes sizes;
  for (const size_t s : order) {
    GroupSizes with = sizes;
    with.Add(trees[s]);
    if (groups.empty() || !with.PadsLittle()) {
      groups.emplace_back();
      with = GroupSizes();
      with.Add(trees[s]);
    }
    groups.back().push_back(s);
    sizes = with;
  }
  for (std::vector<size_t>& group : groups) std::sort(group.begin(), group.end());
  return groups;
}

PaddedTrees::PaddedTrees(absl::Span<const TreeShape> trees, const ModelConfig& config, at::TensorOptions options)
    : cases_(static_cast<int64_t>(trees.size())),
      kv_heads_(config.kv_heads),
      group_(config.heads / config.kv_heads),
      context_width_(int64_t{config.heads} * config.value_dim),
      scale_(config.attention_scale) {
  for (const TreeShape& tree : trees) {
    TORCH_CHECK(tree.parents.size() == tree.depths.size(), "each row of a tree has a parent and a depth");
    rows_max_ = std::max(rows_max_, tree.rows());
    prefix_max_ = std::max(prefix_max_, tree.prefix);
  }
  std::vector<int64_t> slots;
  for (int64_t s = 0; s < cases_; ++s) {
    for (int64_t m = 0; m < trees[static_cast<size_t>(s)].rows(); ++m) slots.push_back(s * rows_max_ + m);
  }
  slots_ = Upload(slots, options.device());
  mask_ = Upload(MakeMask(trees).to(options.dtype()), options.device())
              .view({cases_, 1, 1, rows_max_, prefix_max_ + rows_max_});
}

at::Tensor PaddedTrees::MakeMask(absl::Span<const TreeShape> trees) const {
  const int64_t width = prefix_max_ + rows_max_;
  at::Tensor mask = at::full({cases_, rows_max_, width}, -std::numeric_limits<float>::infinity(), at::kFloat);
  float* cell = mask.mutable_data_ptr<float>();
  for (const TreeShape& tree : trees) {
    for (int64_t m = 0; m < rows_max_; ++m, cell += width) {
      cell[prefix_max_ + m] = 0;  // Itself; also in padded rows, which would otherwise divide zero by zero.
      if (m >= tree.rows()) continue;
      std::fill(cell, cell + tree.prefix, 0.0f);
      for (int row = tree.parents[static_cast<size_t>(m)]; row >= 0; row = tree.parents[static_cast<size_t>(row)]) {
        cell[prefix_max_ + row] = 0;
      }
    }
  }
  return mask;
}

at::Tensor PaddedTrees::PadQueries(const at::Tensor& rows) const {
  const int64_t dim = rows.size(-1);
  return at::zeros({cases_ * rows_max_, kv_heads_, group_, dim}, rows.options())
      .index_copy_(0, slots_, rows.view({rows.size(0), kv_heads_, group_, dim}))
      .view({cases_, rows_max_, kv_heads_, group_, dim})
      .permute({0, 2, 3, 1, 4})
      .reshape({cases_, kv_heads_, group_ * rows_max_, dim});
}

at::Tensor PaddedTrees::PadKeys(const at::Tensor& rows) const {
  const int64_t dim = rows.size(-1);
  return at::zeros({cases_ * rows_max_, kv_heads_, dim}, rows.options())
      .index_copy_(0, slots_, rows)
      .view({cases_, rows_max_, kv_heads_, dim})
      .permute({0, 2, 1, 3})
      .contiguous();
}

at::Tensor PaddedTrees::UnpadQueries(const at::Tensor& x) const {
  const int64_t dim = x.size(-1);
  return x.view({cases_, kv_heads_, group_, rows_max_, dim})
      .permute({0, 3, 1, 2, 4})
      .reshape({cases_ * rows_max_, kv_heads_ * group_, dim})
      .index_select(0, slots_);
}

at::Tensor PaddedTrees::UnpadKeys(const at::Tensor& x) const {
  const int64_t dim = x.size(-1);
  return x.permute({0, 2, 1, 3}).reshape({cases_ * rows_max_, kv_heads_, dim}).index_select(0, slots_);
}

PaddedTrees::Padded PaddedTrees::Attend(const Projections& rows, const at::Tensor& prefix_k,
                                        const at::Tensor& prefix_v) const {
  const at::Tensor q = PadQueries(rows.q), keys = at::cat({prefix_k, PadKeys(rows.k)}, 2);
  const at::Tensor scores = at::matmul(q, keys.transpose(2, 3)) * scale_;
  const int64_t width = prefix_max_ + rows_max_;
  const at::Tensor masked = scores.view({cases_, kv_heads_, group_, rows_max_, width}) + mask_;
  const at::Tensor probabilities = at::softmax(masked, -1, at::kFloat).to(scores.scalar_type()).view(scores.sizes());
  return {q, keys, at::cat({prefix_v, PadKeys(rows.v)}, 2), probabilities};
}

at::Tensor PaddedTrees::Forward(const Projections& rows, const at::Tensor& prefix_k, const at::Tensor& prefix_v) const {
  const Padded padded = Attend(rows, prefix_k, prefix_v);
  return UnpadQueries(at::matmul(padded.probabilities, padded.values)).reshape({slots_.size(0), context_width_});
}

PaddedTrees::Gradients PaddedTrees::Backward(const at::Tensor& dcontext, const Projections& rows,
                                             const at::Tensor& prefix_k, const at::Tensor& prefix_v) const {
  const Padded padded = Attend(rows, prefix_k, prefix_v);
  const at::Tensor dctx = PadQueries(dcontext.view({slots_.size(0), kv_heads_ * group_, -1}));
  const at::Tensor dp = at::matmul(dctx, padded.values.transpose(2, 3));
  const at::Tensor& p = padded.probabilities;
  const at::Tensor dscores = p * (dp - (dp * p).sum(-1, true)) * scale_;
  // The prefix is fixed: only the moving columns of keys and values have gradients.
  const at::Tensor p_moving = p.narrow(3, prefix_max_, rows_max_),
                   ds_moving = dscores.narrow(3, prefix_max_, rows_max_);
  return {UnpadQueries(at::matmul(dscores, padded.keys)), UnpadKeys(at::matmul(ds_moving.transpose(2, 3), padded.q)),
          UnpadKeys(at::matmul(p_moving.transpose(2, 3), dctx))};
}

}  // namespace c3po::aten
