#include "server/model/causal_attention.h"

#include <ATen/ATen.h>

#include <limits>

#include "server/model/cpu/attention.h"
#include "server/model/matrix_product.h"

namespace c3po {

at::Tensor CausalAttention(const at::Tensor& q_rows, const at::Tensor& all_keys, const at::Tensor& all_values,
                           int64_t start, const ModelConfig& config) {
  const int64_t rows = q_rows.size(0), end = start + rows;
  const int64_t kv_heads = config.kv_heads, group = config.heads / config.kv_heads, head_dim = config.head_dim;
  const int64_t value_dim = config.value_dim, capacity = all_keys.size(1);
  const auto packed = [&](const at::Tensor& x, int64_t dim) {
    return OnCpuKernels(x) && x.stride(1) == dim && x.stride(2) == 1 &&
           (kv_heads == 1 || x.stride(0) == capacity * dim);
  };
  if (OnCpuKernels(q_rows) && packed(all_keys, head_dim) && packed(all_values, value_dim)) {
    const at::Tensor q = q_rows.contiguous(), context = at::empty({rows, config.heads * value_dim}, q_rows.options());
    cpu::CausalAttention({config.heads, kv_heads, head_dim, value_dim, config.attention_scale},
                         q.const_data_ptr<float>(), rows, start, all_keys.const_data_ptr<float>(),
                         all_values.const_data_ptr<float>(), capacity, context.mutable_data_ptr<float>());
    return context;
  }
  const at::Tensor keys = all_keys.narrow(1, 0, end), values = all_values.narrow(1, 0, end);
  const at::Tensor q =
      q_rows.view({rows, kv_heads, group, head_dim}).permute({1, 2, 0, 3}).reshape({kv_heads, group * rows, head_dim});
  at::Tensor scores = at::bmm(q, keys.transpose(1, 2)) * config.attention_scale;
  if (rows > 1) {
    const at::Tensor mask =
        at::full({rows, end}, -std::numeric_limits<float>::infinity(), scores.options()).triu(start + 1);
    scores = (scores.view({kv_heads, group, rows, end}) + mask).view(scores.sizes());
  }
  const at::Tensor probabilities = at::softmax(scores, -1, at::kFloat).to(q.scalar_type());
  return at::bmm(probabilities, values)
      .view({kv_heads, group, rows, value_dim})
      .permute({2, 0, 1, 3})
      .reshape({rows, config.heads * value_dim});
}

}  // namespace c3po
