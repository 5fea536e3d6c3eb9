#include "server/compute/aten/causal_attention.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "server/compute/aten/matrix_tensors.h"

namespace c3po::aten {
namespace {

// The first `length` positions, [kv_heads, length, dim], of type `to`.
at::Tensor Gather(const at::Tensor& cache, absl::Span<const KvRun> kv, int64_t length, at::ScalarType to) {
  std::vector<at::Tensor> parts;
  for (const KvRun& run : kv) {
    const int64_t part = std::min(run.length, length);
    if (part > 0) parts.push_back(cache.narrow(1, run.slot, part));
    length -= part;
  }
  return (parts.size() == 1 ? parts[0] : at::cat(parts, 1)).to(to);
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

CachedRows::Singles MakeSingles(absl::Span<const SequenceRuns> sequences, absl::Span<const size_t> members,
                                at::Device device) {
  CachedRows::Singles singles;
  singles.length = sequences[members.back()].start + 1;
  const auto count = static_cast<int64_t>(members.size());
  std::vector<int64_t> rows, slots;
  const at::Tensor mask = at::zeros({count, 1, singles.length}, at::kFloat);
  for (int64_t i = 0; i < count; ++i) {
    const SequenceRuns& sequence = sequences[members[static_cast<size_t>(i)]];
    const int64_t length = sequence.start + 1;
    rows.push_back(sequence.first_row);
    AppendSlots(sequence.kv, 0, length, slots);
    slots.resize(static_cast<size_t>((i + 1) * singles.length), sequence.kv.front().slot);
    mask[i].narrow(1, length, singles.length - length).fill_(-std::numeric_limits<float>::infinity());
  }
  singles.rows = Upload(rows, device);
  singles.slots = Upload(slots, device);
  singles.mask = Upload(mask, device);
  return singles;
}

// q [S, heads, head_dim] -> [S, heads * value_dim].
at::Tensor AttendSingles(const at::Tensor& q, const CachedRows::Singles& singles, const at::Tensor& keys,
                         const at::Tensor& values, const ModelConfig& config) {
  const int64_t count = q.size(0), kv_heads = config.kv_heads, group = config.heads / kv_heads;
  const auto gather = [&](const at::Tensor& cache) {  // [kv_heads * S, length, dim]
    const at::Tensor rows = cache.index_select(1, singles.slots).to(q.scalar_type());
    return rows.view({kv_heads * count, singles.length, cache.size(2)});
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

// Of each row's own position, in the order of the matrix's rows.
std::vector<int64_t> OwnSlots(absl::Span<const SequenceRuns> sequences) {
  int64_t count = 0;
  for (const SequenceRuns& sequence : sequences) count += sequence.rows;
  std::vector<int64_t> slots(static_cast<size_t>(count)), own;
  for (const SequenceRuns& sequence : sequences) {
    own.clear();
    AppendSlots(sequence.kv, sequence.start, sequence.start + sequence.rows, own);
    TORCH_CHECK(static_cast<int64_t>(own.size()) == sequence.rows, "a sequence has no slots for its rows");
    TORCH_CHECK(sequence.first_row >= 0 && sequence.first_row + sequence.rows <= count,
                "a matrix has rows that belong to no sequence");
    std::copy(own.begin(), own.end(), slots.begin() + sequence.first_row);
  }
  return slots;
}

}  // namespace

CachedRows CachedRows::Make(absl::Span<const SequenceRuns> all, at::Device device, int64_t slots_max) {
  CachedRows result;
  result.sequences.assign(all.begin(), all.end());
  result.slots = Upload(OwnSlots(all), device);
  std::vector<size_t> single;
  for (size_t i = 0; i < all.size(); ++i) (all[i].rows == 1 ? single : result.of_several).push_back(i);
  std::stable_sort(single.begin(), single.end(), [&](size_t a, size_t b) { return all[a].start < all[b].start; });
  for (size_t begin = 0; begin < single.size();) {
    size_t end = begin + 1;
    const auto padded = [&](size_t last) {
      return static_cast<int64_t>(last - begin + 1) * (all[single[last]].start + 1);
    };
    while (end < single.size() && padded(end) <= slots_max) ++end;
    result.singles.push_back(MakeSingles(all, absl::MakeConstSpan(single).subspan(begin, end - begin), device));
    begin = end;
  }
  return result;
}

at::Tensor CachedAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const CachedRows& rows,
                           const at::Tensor& keys, const at::Tensor& values, const ModelConfig& config) {
  keys.index_copy_(1, rows.slots, k.transpose(0, 1).to(keys.scalar_type()));
  values.index_copy_(1, rows.slots, v.transpose(0, 1).to(values.scalar_type()));
  const at::Tensor context = at::empty({q.size(0), int64_t{config.heads} * config.value_dim}, q.options());
  for (const CachedRows::Singles& singles : rows.singles) {
    const at::Tensor own = q.index_select(0, singles.rows);
    context.index_copy_(0, singles.rows, AttendSingles(own, singles, keys, values, config));
  }
  for (const size_t i : rows.of_several) {
    const SequenceRuns& sequence = rows.sequences[i];
    const int64_t length = sequence.start + sequence.rows;
    context.narrow(0, sequence.first_row, sequence.rows)
        .copy_(CausalAttention(q.narrow(0, sequence.first_row, sequence.rows),
                               Gather(keys, sequence.kv, length, q.scalar_type()),
                               Gather(values, sequence.kv, length, q.scalar_type()), sequence.start, config));
  }
  return context;
}

at::Tensor CausalAttention(const at::Tensor& q_rows, const at::Tensor& all_keys, const at::Tensor& all_values,
                           int64_t start, const ModelConfig& config) {
  const int64_t rows = q_rows.size(0), end = start + rows;
  const int64_t kv_heads = config.kv_heads, group = config.heads / config.kv_heads, head_dim = config.head_dim;
  const int64_t value_dim = config.value_dim;
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

}  // namespace c3po::aten
