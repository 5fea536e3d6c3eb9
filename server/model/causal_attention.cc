#include "server/model/causal_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "server/model/matrix_product.h"

namespace c3po {

namespace {

cpu::HeadShape HeadsOf(const ModelConfig& config) {
  return {config.heads, config.kv_heads, config.head_dim, config.value_dim, config.attention_scale};
}

// Slots lie one after the other, and so do heads.
bool SlotsAreRows(const at::Tensor& keys, const at::Tensor& values, const ModelConfig& config) {
  const auto packed = [](const at::Tensor& x, int64_t dim) {
    return OnCpuKernels(x) && x.stride(2) == 1 && x.stride(1) == dim &&
           (x.size(0) == 1 || x.stride(0) == x.size(1) * dim);
  };
  return keys.size(1) == values.size(1) && packed(keys, config.head_dim) && packed(values, config.value_dim);
}

at::Tensor AttendOnCpu(const at::Tensor& q_rows, absl::Span<const cpu::SequenceRows> sequences, const at::Tensor& keys,
                       const at::Tensor& values, const ModelConfig& config) {
  const at::Tensor q = q_rows.contiguous();
  const at::Tensor context = at::empty({q.size(0), config.heads * config.value_dim}, q.options());
  cpu::CausalAttention(HeadsOf(config), sequences, q.const_data_ptr<float>(), keys.const_data_ptr<float>(),
                       values.const_data_ptr<float>(), keys.size(1), context.mutable_data_ptr<float>());
  return context;
}

// The first `length` positions, [kv_heads, length, dim].
at::Tensor Gather(const at::Tensor& cache, absl::Span<const KvRun> kv, int64_t length) {
  std::vector<at::Tensor> parts;
  for (const KvRun& run : kv) {
    const int64_t part = std::min(run.length, length);
    if (part > 0) parts.push_back(cache.narrow(1, run.slot, part));
    length -= part;
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts, 1);
}

// rows [rows, kv_heads, dim] into positions [start, start + rows) of `cache`.
void Scatter(const at::Tensor& rows, const cpu::SequenceRows& sequence, const at::Tensor& cache) {
  int64_t position = 0;
  for (const KvRun& run : sequence.kv) {
    const int64_t begin = std::max(sequence.start, position);
    const int64_t end = std::min(sequence.start + sequence.rows, position + run.length);
    if (begin < end) {
      cache.narrow(1, run.slot + begin - position, end - begin)
          .copy_(rows.narrow(0, begin - sequence.start, end - begin).transpose(0, 1));
    }
    position += run.length;
  }
}

}  // namespace

at::Tensor CachedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           absl::Span<const cpu::SequenceRows> sequences, const at::Tensor& keys,
                           const at::Tensor& values, const ModelConfig& config) {
  if (OnCpuKernels(q) && SlotsAreRows(keys, values, config)) {
    const at::Tensor k_rows = k.contiguous(), v_rows = v.contiguous();
    cpu::StoreKeysAndValues(HeadsOf(config), sequences, k_rows.const_data_ptr<float>(), v_rows.const_data_ptr<float>(),
                            keys.mutable_data_ptr<float>(), values.mutable_data_ptr<float>(), keys.size(1));
    return AttendOnCpu(q, sequences, keys, values, config);
  }
  std::vector<at::Tensor> contexts;
  for (const cpu::SequenceRows& sequence : sequences) {
    const auto rows = [&](const at::Tensor& x) { return x.narrow(0, sequence.first_row, sequence.rows); };
    Scatter(rows(k), sequence, keys);
    Scatter(rows(v), sequence, values);
    const int64_t length = sequence.start + sequence.rows;
    contexts.push_back(CausalAttention(rows(q), Gather(keys, sequence.kv, length), Gather(values, sequence.kv, length),
                                       sequence.start, config));
  }
  return contexts.size() == 1 ? contexts[0] : at::cat(contexts);
}

at::Tensor CausalAttention(const at::Tensor& q_rows, const at::Tensor& all_keys, const at::Tensor& all_values,
                           int64_t start, const ModelConfig& config) {
  const int64_t rows = q_rows.size(0), end = start + rows;
  const int64_t kv_heads = config.kv_heads, group = config.heads / config.kv_heads, head_dim = config.head_dim;
  const int64_t value_dim = config.value_dim;
  if (OnCpuKernels(q_rows) && SlotsAreRows(all_keys, all_values, config)) {
    const KvRun whole{0, end};
    return AttendOnCpu(q_rows, {{0, rows, start, {&whole, 1}}}, all_keys, all_values, config);
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
