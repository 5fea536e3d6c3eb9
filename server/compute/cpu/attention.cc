#include "server/compute/cpu/attention.h"

#include <algorithm>
#include <cstring>

#include "server/compute/cpu/matrix_products.h"
#include "server/compute/cpu/row_operations.h"
#include "server/compute/cpu/thread_pool.h"

namespace c3po::cpu {
namespace {

constexpr int64_t kBlockRows = 32;  // Queries that pass over the keys together.

// A block of a sequence's queries.
struct QueryBlock {
  const SequenceRuns* sequence;
  int64_t begin, end;  // of its rows
};

// Rows [first, first + rows) of kept keys or values, `dim` wide.
WeightView KeptRows(const void* data, ElementType type, int64_t first, int64_t rows, int64_t dim) {
  return {static_cast<const char*>(data) + first * dim * BytesOf(type), type == ElementType::kBfloat16, rows, dim};
}

// One key-value head of a block of queries. The keys beyond a row's own position get probability 0, which leaves its
// sums as they are. Runs are passed over in the order of positions, so that sums grow in that order too.
void CausalBlock(const HeadShape& shape, const QueryBlock& block, int64_t kv_head, const float* q, const KvSlots& kv,
                 float* context) {
  const SequenceRuns& sequence = *block.sequence;
  const int64_t group = shape.heads / shape.kv_heads, dim = shape.head_dim, length = sequence.start + block.end;
  const int64_t value_dim = shape.value_dim, count = (block.end - block.begin) * group;
  thread_local std::vector<float> scores;
  thread_local std::vector<int64_t> index;
  thread_local std::vector<DotProduct> dots;
  thread_local std::vector<OuterProduct> sums;
  scores.resize(static_cast<size_t>(count * length));
  index.clear();
  for (int64_t r = block.begin; r < block.end; ++r) {
    for (int64_t h = 0; h < group; ++h) {
      index.push_back((sequence.first_row + r) * shape.heads + kv_head * group + h);
    }
  }
  dots.clear();
  sums.clear();
  int64_t position = 0;
  for (const KvRun& run : sequence.kv) {
    const int64_t part = std::min(run.length, length - position);
    if (part <= 0) break;
    float* columns = scores.data() + position;
    const int64_t slot = kv_head * kv.slots + run.slot;
    dots.push_back(
        {{q, dim, count, index.data()}, KeptRows(kv.keys, kv.type, slot, part, dim), {columns, length, nullptr}});
    sums.push_back({{columns, length, count, nullptr},
                    KeptRows(kv.values, kv.type, slot, part, value_dim),
                    {context, value_dim, index.data()}});
    position += part;
  }
  MultiplyTransposed(dots);
  const auto scale = static_cast<float>(shape.scale);
  for (int64_t i = 0; i < count; ++i) {
    SoftmaxInPlace(scores.data() + i * length, sequence.start + block.begin + i / group + 1, length, scale);
    std::fill_n(context + index[i] * value_dim, value_dim, 0.0f);
  }
  MultiplyAdd(sums);
}

// The key-value head's columns that a row sees, keys or values: a prefix in blocks, then chosen rows of the packed
// ones.
struct Columns {
  const void* const* blocks;
  ElementType type;
  int64_t offset;  // of the head's rows in a block, elements
  int64_t block_positions, prefix_length;
  const float* packed;    // of row 0, at the head
  int64_t packed_stride;  // between packed rows
  const int64_t* rows;
  int64_t count;
  int64_t dim;

  // visit(j, row) for all columns, ascending; a row is of float or, as bfloat16, of uint16_t.
  template <typename Visit>
  void ForEach(const Visit& visit) const {
    if (type == ElementType::kBfloat16) {
      ForEachOfPrefix<uint16_t>(visit);
    } else {
      ForEachOfPrefix<float>(visit);
    }
    for (int64_t i = 0; i < count; ++i) visit(prefix_length + i, packed + rows[i] * packed_stride);
  }

 private:
  template <typename Element, typename Visit>
  void ForEachOfPrefix(const Visit& visit) const {
    for (int64_t begin = 0, b = 0; begin < prefix_length; begin += block_positions, ++b) {
      const Element* row = static_cast<const Element*>(blocks[b]) + offset;
      const int64_t end = std::min(prefix_length, begin + block_positions);
      for (int64_t j = begin; j < end; ++j, row += dim) visit(j, row);
    }
  }
};

// Keys lie first in a block.
Columns KeysOf(const HeadShape& shape, const TreeRows& tree, int64_t s, int64_t row, int64_t kv_head,
               const TreePrefixes& prefixes, const float* packed) {
  return {prefixes.blocks[s],
          prefixes.type,
          kv_head * prefixes.block_positions * shape.head_dim,
          prefixes.block_positions,
          tree.prefix_lengths[s],
          packed + kv_head * shape.head_dim,
          shape.kv_heads * shape.head_dim,
          tree.ancestors.data() + tree.ancestor_begin[row],
          tree.ancestor_begin[row + 1] - tree.ancestor_begin[row],
          shape.head_dim};
}

Columns ValuesOf(const HeadShape& shape, const TreeRows& tree, int64_t s, int64_t row, int64_t kv_head,
                 const TreePrefixes& prefixes, const float* packed) {
  return {prefixes.blocks[s],
          prefixes.type,
          prefixes.block_positions * (shape.kv_heads * shape.head_dim + kv_head * shape.value_dim),
          prefixes.block_positions,
          tree.prefix_lengths[s],
          packed + kv_head * shape.value_dim,
          shape.kv_heads * shape.value_dim,
          tree.ancestors.data() + tree.ancestor_begin[row],
          tree.ancestor_begin[row + 1] - tree.ancestor_begin[row],
          shape.value_dim};
}

// work(case, kv_head) for all of both.
template <typename Work>
void ForEachCaseAndHead(const HeadShape& shape, const TreeRows& tree, const Work& work) {
  const auto cases = static_cast<int64_t>(tree.prefix_lengths.size());
  const int64_t cost = tree.columns() * shape.heads * shape.head_dim;
  const int64_t all = cases * shape.kv_heads, grain = cost < (1 << 16) ? all : 1;
  ParallelFor(all, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(i / shape.kv_heads, i % shape.kv_heads);
  });
}

}  // namespace

void CausalAttention(const HeadShape& shape, absl::Span<const SequenceRuns> sequences, const float* q,
                     const KvSlots& kv, float* context) {
  thread_local std::vector<QueryBlock> kept;  // It keeps its memory from step to step.
  std::vector<QueryBlock>& blocks = kept;     // This thread's, on whatever thread it is read.
  blocks.clear();
  int64_t cost = 0;
  for (const SequenceRuns& sequence : sequences) {
    for (int64_t begin = 0; begin < sequence.rows; begin += kBlockRows) {
      blocks.push_back({&sequence, begin, std::min(sequence.rows, begin + kBlockRows)});
    }
    cost += shape.heads * shape.head_dim * sequence.rows * (sequence.start + sequence.rows);
  }
  const int64_t all = static_cast<int64_t>(blocks.size()) * shape.kv_heads, grain = cost < (1 << 15) ? all : 1;
  ParallelFor(all, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      CausalBlock(shape, blocks[i / shape.kv_heads], i % shape.kv_heads, q, kv, context);
    }
  });
}

void StoreElements(const float* x, int64_t count, ElementType type, void* to) {
  if (type == ElementType::kBfloat16) return RoundToBfloat16(x, count, static_cast<uint16_t*>(to));
  std::memcpy(to, x, static_cast<size_t>(count) * sizeof(float));
}

void StoreKeysAndValues(const HeadShape& shape, absl::Span<const SequenceRuns> sequences, const float* k,
                        const float* v, const KvSlots& kv) {
  const int64_t heads = shape.kv_heads, dim = shape.head_dim, value_dim = shape.value_dim, bytes = BytesOf(kv.type);
  char* const keys = static_cast<char*>(kv.keys);
  char* const values = static_cast<char*>(kv.values);
  for (const SequenceRuns& sequence : sequences) {
    int64_t position = 0;
    for (const KvRun& run : sequence.kv) {
      const int64_t begin = std::max(sequence.start, position);
      const int64_t end = std::min(sequence.start + sequence.rows, position + run.length);
      for (int64_t p = begin; p < end; ++p) {
        const int64_t row = sequence.first_row + p - sequence.start, slot = run.slot + p - position;
        for (int64_t g = 0; g < heads; ++g) {
          const int64_t at = g * kv.slots + slot, from = row * heads + g;
          StoreElements(k + from * dim, dim, kv.type, keys + at * dim * bytes);
          StoreElements(v + from * value_dim, value_dim, kv.type, values + at * value_dim * bytes);
        }
      }
      position += run.length;
    }
  }
}

void TreeAttentionForward(const HeadShape& shape, const TreeRows& tree, const float* q, const float* k, const float* v,
                          const TreePrefixes& prefixes, float* probabilities, float* context) {
  const int64_t group = shape.heads / shape.kv_heads, dim = shape.head_dim, value_dim = shape.value_dim;
  const auto scale = static_cast<float>(shape.scale);
  ForEachCaseAndHead(shape, tree, [&](int64_t s, int64_t g) {
    for (int64_t row = tree.case_begin[s]; row < tree.case_begin[s + 1]; ++row) {
      const Columns keys = KeysOf(shape, tree, s, row, g, prefixes, k);
      const Columns values = ValuesOf(shape, tree, s, row, g, prefixes, v);
      const int64_t columns = tree.ColumnsOf(row);
      for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        const float* const query = q + (row * shape.heads + h) * dim;
        float* const p = probabilities + tree.column_begin[row] * shape.heads + h * columns;
        float* const out = context + (row * shape.heads + h) * value_dim;
        keys.ForEach([&](int64_t j, const auto* key) { p[j] = Dot(query, key, dim); });
        SoftmaxInPlace(p, columns, columns, scale);
        std::fill_n(out, value_dim, 0.0f);
        values.ForEach([&](int64_t j, const auto* value) { AddScaled(p[j], value, value_dim, out); });
      }
    }
  });
}

void TreeAttentionBackward(const HeadShape& shape, const TreeRows& tree, const float* dcontext, const float* q,
                           const float* k, const float* v, const TreePrefixes& prefixes, const float* probabilities,
                           float* dq, float* dk, float* dv) {
  const int64_t group = shape.heads / shape.kv_heads, dim = shape.head_dim, value_dim = shape.value_dim;
  const double scale = shape.scale;
  ForEachCaseAndHead(shape, tree, [&](int64_t s, int64_t g) {
    thread_local std::vector<float> ds;
    const auto moving = [&](float* x, int64_t row, int64_t size) { return x + (row * shape.kv_heads + g) * size; };
    for (int64_t row = tree.case_begin[s]; row < tree.case_begin[s + 1]; ++row) {
      std::fill_n(moving(dk, row, dim), dim, 0.0f);
      std::fill_n(moving(dv, row, value_dim), value_dim, 0.0f);
    }
    for (int64_t row = tree.case_begin[s]; row < tree.case_begin[s + 1]; ++row) {
      const Columns keys = KeysOf(shape, tree, s, row, g, prefixes, k);
      const Columns values = ValuesOf(shape, tree, s, row, g, prefixes, v);
      const int64_t n = keys.prefix_length, columns = tree.ColumnsOf(row);
      ds.resize(static_cast<size_t>(columns));
      float* const d = ds.data();
      for (int64_t h = g * group; h < (g + 1) * group; ++h) {
        const float* const query = q + (row * shape.heads + h) * dim;
        const float* const dout = dcontext + (row * shape.heads + h) * value_dim;
        const float* const p = probabilities + tree.column_begin[row] * shape.heads + h * columns;
        double mean = 0;
        values.ForEach([&](int64_t j, const auto* value) {
          d[j] = Dot(dout, value, value_dim);
          mean += double{d[j]} * p[j];
        });
        float* const dquery = dq + (row * shape.heads + h) * dim;
        std::fill_n(dquery, dim, 0.0f);
        keys.ForEach([&](int64_t j, const auto* key) {
          d[j] = static_cast<float>(p[j] * (d[j] - mean) * scale);
          AddScaled(d[j], key, dim, dquery);
        });
        for (int64_t i = 0; i < keys.count; ++i) {
          AddScaled(d[n + i], query, dim, moving(dk, keys.rows[i], dim));
          AddScaled(p[n + i], dout, value_dim, moving(dv, keys.rows[i], value_dim));
        }
      }
    }
  });
}

}  // namespace c3po::cpu
