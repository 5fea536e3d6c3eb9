#include "server/model/tree_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "server/model/matrix_product.h"

namespace c3po {

TreeAttention::TreeAttention(absl::Span<const AnswerTree* const> trees, absl::Span<const int> prefix_lengths,
                             const ModelConfig& config, at::TensorOptions options)
    : cases_(static_cast<int64_t>(trees.size())),
      kv_heads_(config.kv_heads),
      group_(config.heads / config.kv_heads),
      shape_{config.heads, config.kv_heads, config.head_dim, config.value_dim, config.attention_scale} {
  for (const AnswerTree* tree : trees) rows_max_ = std::max<int64_t>(rows_max_, tree->rows());
  for (int length : prefix_lengths) prefix_max_ = std::max<int64_t>(prefix_max_, length);
  std::vector<int64_t> slots;
  for (int64_t s = 0; s < cases_; ++s) {
    for (int64_t m = 0; m < trees[s]->rows(); ++m) slots.push_back(s * rows_max_ + m);
  }
  slots_ = at::tensor(slots, at::kLong).to(options.device());

  packed_.prefix_max = prefix_max_;
  packed_.case_begin = packed_.ancestor_begin = {0};
  packed_.prefix_lengths.assign(prefix_lengths.begin(), prefix_lengths.end());
  for (const AnswerTree* tree : trees) {
    const int64_t first = packed_.case_begin.back();
    for (int m = 0; m < tree->rows(); ++m) {
      for (int row = m; row >= 0; row = tree->parents[row]) packed_.ancestors.push_back(first + row);
      const auto end = static_cast<int64_t>(packed_.ancestors.size());
      packed_.ancestors_max = std::max(packed_.ancestors_max, end - packed_.ancestor_begin.back());
      packed_.ancestor_begin.push_back(end);
    }
    packed_.case_begin.push_back(first + tree->rows());
  }
}

at::Tensor TreeAttention::Mask(at::TensorOptions options) const {
  if (mask_.defined()) return mask_;
  const int64_t width = prefix_max_ + rows_max_;
  at::Tensor mask = at::full({cases_, rows_max_, width}, -std::numeric_limits<float>::infinity(), at::kFloat);
  float* cell = mask.mutable_data_ptr<float>();
  for (int64_t s = 0; s < cases_; ++s) {
    const int64_t first = packed_.case_begin[s], rows = packed_.case_begin[s + 1] - first;
    for (int64_t m = 0; m < rows_max_; ++m, cell += width) {
      cell[prefix_max_ + m] = 0;  // Itself; also in padded rows, which would otherwise divide zero by zero.
      if (m >= rows) continue;
      std::fill(cell, cell + packed_.prefix_lengths[s], 0.0f);
      for (int64_t a = packed_.ancestor_begin[first + m]; a < packed_.ancestor_begin[first + m + 1]; ++a)
        cell[prefix_max_ + packed_.ancestors[a] - first] = 0;
    }
  }
  mask_ = mask.to(options).view({cases_, 1, 1, rows_max_, width});
  return mask_;
}

at::Tensor TreeAttention::PadQueries(const at::Tensor& rows) const {
  const int64_t dim = rows.size(-1);
  return at::zeros({cases_ * rows_max_, kv_heads_, group_, dim}, rows.options())
      .index_copy_(0, slots_, rows.view({rows.size(0), kv_heads_, group_, dim}))
      .view({cases_, rows_max_, kv_heads_, group_, dim})
      .permute({0, 2, 3, 1, 4})
      .reshape({cases_, kv_heads_, group_ * rows_max_, dim});
}

at::Tensor TreeAttention::PadKeys(const at::Tensor& rows) const {
  const int64_t dim = rows.size(-1);
  return at::zeros({cases_ * rows_max_, kv_heads_, dim}, rows.options())
      .index_copy_(0, slots_, rows)
      .view({cases_, rows_max_, kv_heads_, dim})
      .permute({0, 2, 1, 3})
      .contiguous();
}

at::Tensor TreeAttention::UnpadQueries(const at::Tensor& x) const {
  const int64_t dim = x.size(-1);
  return x.view({cases_, kv_heads_, group_, rows_max_, dim})
      .permute({0, 3, 1, 2, 4})
      .reshape({cases_ * rows_max_, kv_heads_ * group_, dim})
      .index_select(0, slots_);
}

at::Tensor TreeAttention::UnpadKeys(const at::Tensor& x) const {
  const int64_t dim = x.size(-1);
  return x.permute({0, 2, 1, 3}).reshape({cases_ * rows_max_, kv_heads_, dim}).index_select(0, slots_);
}

at::Tensor TreeAttention::Forward(const Projections& rows, const at::Tensor& prefix_k, const at::Tensor& prefix_v,
                                  Tape* tape) const {
  Tape local;
  Tape& t = tape ? *tape : local;
  if (OnCpuKernels(rows.q)) {
    const int64_t count = rows.q.size(0);
    const at::Tensor keys = prefix_k.contiguous(), values = prefix_v.contiguous();
    t.q = rows.q.contiguous();
    t.k = rows.k.contiguous();
    t.v = rows.v.contiguous();
    t.probabilities = at::empty({count, shape_.heads, packed_.width()}, rows.q.options());
    const at::Tensor context = at::empty({count, shape_.heads * shape_.value_dim}, rows.q.options());
    cpu::TreeAttentionForward(shape_, packed_, t.q.const_data_ptr<float>(), t.k.const_data_ptr<float>(),
                              t.v.const_data_ptr<float>(), keys.const_data_ptr<float>(), values.const_data_ptr<float>(),
                              t.probabilities.mutable_data_ptr<float>(), context.mutable_data_ptr<float>());
    return context;
  }
  t.q = PadQueries(rows.q);
  t.k = PadKeys(rows.k);
  t.v = PadKeys(rows.v);
  const at::Tensor keys = at::cat({prefix_k, t.k}, 2), values = at::cat({prefix_v, t.v}, 2);
  const at::Tensor scores = at::matmul(t.q, keys.transpose(2, 3)) * shape_.scale;
  const int64_t width = prefix_max_ + rows_max_;
  const at::Tensor masked = scores.view({cases_, kv_heads_, group_, rows_max_, width}) + Mask(scores.options());
  t.probabilities = at::softmax(masked, -1, at::kFloat).to(scores.scalar_type()).view(scores.sizes());
  return UnpadQueries(at::matmul(t.probabilities, values)).reshape({slots_.size(0), shape_.heads * shape_.value_dim});
}

TreeAttention::Gradients TreeAttention::Backward(const at::Tensor& dcontext, const Tape& tape,
                                                 const at::Tensor& prefix_k, const at::Tensor& prefix_v) const {
  if (OnCpuKernels(dcontext)) {
    Gradients gradients{at::empty_like(tape.q), at::empty_like(tape.k), at::empty_like(tape.v)};
    const at::Tensor dout = dcontext.contiguous(), keys = prefix_k.contiguous(), values = prefix_v.contiguous();
    cpu::TreeAttentionBackward(shape_, packed_, dout.const_data_ptr<float>(), tape.q.const_data_ptr<float>(),
                               tape.k.const_data_ptr<float>(), tape.v.const_data_ptr<float>(),
                               keys.const_data_ptr<float>(), values.const_data_ptr<float>(),
                               tape.probabilities.const_data_ptr<float>(), gradients.q.mutable_data_ptr<float>(),
                               gradients.k.mutable_data_ptr<float>(), gradients.v.mutable_data_ptr<float>());
    return gradients;
  }
  const at::Tensor dctx = PadQueries(dcontext.view({slots_.size(0), shape_.heads, shape_.value_dim}));
  const at::Tensor values = at::cat({prefix_v, tape.v}, 2), keys = at::cat({prefix_k, tape.k}, 2);
  const at::Tensor dp = at::matmul(dctx, values.transpose(2, 3));
  const at::Tensor& p = tape.probabilities;
  const at::Tensor dscores = p * (dp - (dp * p).sum(-1, true)) * shape_.scale;
  // The prefix is fixed: only the moving columns of keys and values have gradients.
  const at::Tensor p_moving = p.narrow(3, prefix_max_, rows_max_),
                   ds_moving = dscores.narrow(3, prefix_max_, rows_max_);
  return {UnpadQueries(at::matmul(dscores, keys)), UnpadKeys(at::matmul(ds_moving.transpose(2, 3), tape.q)),
          UnpadKeys(at::matmul(p_moving.transpose(2, 3), dctx))};
}

}  // namespace c3po
