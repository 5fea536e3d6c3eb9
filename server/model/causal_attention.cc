#include "server/model/causal_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <utility>

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

// Of the positions [begin, end).
void AppendSlots(absl::Span<const KvRun> kv, int64_t begin, int64_t end, std::vector<int64_t>& slots) {
  int64_t position = 0;
  for (const KvRun& run : kv) {
    for (int64_t i = std::max(begin, position); i < std::min(end, position + run.length); ++i) {
      slots.push_back(run.slot + i - position);
    }
    position += run.length;
  }
}

CachedRows::Singles MakeSingles(absl::Span<const cpu::SequenceRows> sequences, absl::Span<const size_t> members,
                                at::Device device) {
  CachedRows::Singles singles;
  singles.length = sequences[members.back()].start + 1;
  const auto count = static_cast<int64_t>(members.size());
  std::vector<int64_t> rows, slots;
  const at::Tensor mask = at::zeros({count, 1, singles.length}, at::kFloat);
  for (int64_t i = 0; i < count; ++i) {
    const cpu::SequenceRows& sequence = sequences[members[i]];
    const int64_t length = sequence.start + 1;
    rows.push_back(sequence.first_row);
    AppendSlots(sequence.kv, 0, length, slots);
    slots.resize((i + 1) * singles.length, sequence.kv.front().slot);
    mask[i].narrow(1, length, singles.length - length).fill_(-std::numeric_limits<float>::infinity());
  }
  singles.rows = at::tensor(rows, at::kLong).to(device);
  singles.slots = at::tensor(slots, at::kLong).to(device);
  singles.mask = mask.to(device);
  return singles;
}

// q [S, heads, head_dim] -> [S, heads * value_dim].
at::Tensor AttendSingles(const at::Tensor& q, const CachedRows::Singles& singles, const at::Tensor& keys,
                         const at::Tensor& values, const ModelConfig& config) {
  const int64_t count = q.size(0), kv_heads = config.kv_heads, group = config.heads / kv_heads;
  const auto gather = [&](const at::Tensor& cache) {  // [kv_heads * S, length, dim]
    return cache.index_select(1, singles.slots).view({kv_heads * count, singles.length, cache.size(2)});
  };
  const at::Tensor queries =
      q.view({count, kv_heads, group, config.head_dim}).transpose(0, 1).reshape({kv_heads * count, group, -1});
  const at::Tensor scores = at::bmm(queries, gather(keys).transpose(1, 2)) * config.attention_scale;
  const at::Tensor masked = scores.view({kv_heads, count, group, singles.length}) + singles.mask;
  const at::Tensor probabilities = at::softmax(masked, -1, at::kFloat).to(q.scalar_type()).view(scores.sizes());
  return at::bmm(probabilities, gather(values))
      .view({kv_heads, count, group, config.value_dim})
      .transpose(0, 1)
      .reshape({count, config.heads * config.value_dim});
}

}  // namespace

CachedRows CachedRows::Make(std::vector<cpu::SequenceRows> sequences, std::optional<at::Device> device,
                            int64_t slots_max) {
  CachedRows result;
  result.sequences = std::move(sequences);
  if (!device) return result;
  const std::vector<cpu::SequenceRows>& all = result.sequences;
  std::vector<int64_t> slots;
  std::vector<size_t> single;
  for (size_t i = 0; i < all.size(); ++i) {
    AppendSlots(all[i].kv, all[i].start, all[i].start + all[i].rows, slots);
    (all[i].rows == 1 ? single : result.of_several).push_back(i);
  }
  result.slots = at::tensor(slots, at::kLong).to(*device);
  std::stable_sort(single.begin(), single.end(), [&](size_t a, size_t b) { return all[a].start < all[b].start; });
  for (size_t begin = 0; begin < single.size();) {
    size_t end = begin + 1;
    const auto padded = [&](size_t last) {
      return static_cast<int64_t>(last - begin + 1) * (all[single[last]].start + 1);
    };
    while (end < single.size() && padded(end) <= slots_max) ++end;
    result.singles.push_back(MakeSingles(all, absl::MakeConstSpan(single).subspan(begin, end - begin), *device));
    begin = end;
  }
  return result;
}

at::Tensor CachedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const CachedRows& rows,
                           const at::Tensor& keys, const at::Tensor& values, const ModelConfig& config) {
  if (OnCpuKernels(q) && SlotsAreRows(keys, values, config)) {
    const at::Tensor k_rows = k.contiguous(), v_rows = v.contiguous();
    cpu::StoreKeysAndValues(HeadsOf(config), rows.sequences, k_rows.const_data_ptr<float>(),
                            v_rows.const_data_ptr<float>(), keys.mutable_data_ptr<float>(),
                            values.mutable_data_ptr<float>(), keys.size(1));
    return AttendOnCpu(q, rows.sequences, keys, values, config);
  }
  TORCH_CHECK(rows.slots.defined(), "the rows were packed for the CPU's kernels");
  keys.index_copy_(1, rows.slots, k.transpose(0, 1));
  values.index_copy_(1, rows.slots, v.transpose(0, 1));
  const at::Tensor context = at::empty({q.size(0), int64_t{config.heads} * config.value_dim}, q.options());
  for (const CachedRows::Singles& singles : rows.singles) {
    const at::Tensor own = q.index_select(0, singles.rows);
    context.index_copy_(0, singles.rows, AttendSingles(own, singles, keys, values, config));
  }
  for (const size_t i : rows.of_several) {
    const cpu::SequenceRows& sequence = rows.sequences[i];
    const int64_t length = sequence.start + sequence.rows;
    context.narrow(0, sequence.first_row, sequence.rows)
        .copy_(CausalAttention(q.narrow(0, sequence.first_row, sequence.rows), Gather(keys, sequence.kv, length),
                               Gather(values, sequence.kv, length), sequence.start, config));
  }
  return context;
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
