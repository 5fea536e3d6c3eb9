#include "server/model/causal_attention.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "server/model/cpu/attention.h"
#include "server/model/matrix_product.h"

namespace c3po {

at::Tensor CausalAttention(const at::Tensor& q_rows, const at::Tensor& all_keys, const at::Tensor& all_values,
                           int64_t start, const ModelConfig& config) {
  const int64_t rows = q_rows.size(0), end = start + rows;
  const int64_t kv_heads = config.kv_heads, group = config.heads / config.kv_heads, head_dim = config.head_dim;
  if (OnCpuKernels(q_rows) && OnCpuKernels(all_keys) && all_keys.stride(1) == head_dim &&
      all_keys.strides() == all_values.strides()) {
    const at::Tensor q = q_rows.contiguous(), context = at::empty({rows, config.heads * head_dim}, q_rows.options());
    cpu::CausalAttention({config.heads, kv_heads, head_dim}, q.const_data_ptr<float>(), rows, start,
                         all_keys.const_data_ptr<float>(), all_values.const_data_ptr<float>(), all_keys.stride(0),
                         context.mutable_data_ptr<float>());
    return context;
  }
  const at::Tensor keys = all_keys.narrow(1, 0, end), values = all_values.narrow(1, 0, end);
  const at::Tensor q =
      q_rows.view({rows, kv_heads, group, head_dim}).permute({1, 2, 0, 3}).reshape({kv_heads, group * rows, head_dim});
  at::Tensor scores = at::bmm(q, keys.transpose(1, 2)) * (1 / std::sqrt(static_cast<double>(head_dim)));
  if (rows > 1) {
    const at::Tensor mask =
        at::full({rows, end}, -std::numeric_limits<float>::infinity(), scores.options()).triu(start + 1);
    scores = (scores.view({kv_heads, group, rows, end}) + mask).view(scores.sizes());
  }
  const at::Tensor probabilities = at::softmax(scores, -1, at::kFloat).to(q.scalar_type());
  return at::bmm(probabilities, values)
      .view({kv_heads, group, rows, head_dim})
      .permute({2, 0, 1, 3})
      .reshape({rows, config.heads * head_dim});
}

}  // namespace c3po
