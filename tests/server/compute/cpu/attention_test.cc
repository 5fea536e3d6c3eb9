#include "server/compute/cpu/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>

#include "server/compute/cpu/thread_pool.h"

namespace c3po::cpu {
namespace {

const bool kThreadsSet = (ThreadPool::SetThreads(3), true);

std::vector<float> Random(std::mt19937& rng, int64_t size) {
  std::vector<float> values(size);
  for (float& v : values) v = std::normal_distribution<float>()(rng);
  return values;
}

double DotOf(const double* a, const double* b, int64_t dim) {
  double sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += a[i] * b[i];
  return sum;
}

// softmax(scale q k^T) v of one query over chosen columns.
std::vector<double> Attend(const HeadShape& shape, const double* q, const std::vector<const double*>& keys,
                           const std::vector<const double*>& values) {
  std::vector<double> p, out(shape.value_dim, 0);
  double sum = 0;
  for (const double* key : keys) p.push_back(std::exp(DotOf(q, key, shape.head_dim) * shape.scale));
  for (double v : p) sum += v;
  for (size_t j = 0; j < p.size(); ++j) {
    for (int64_t i = 0; i < shape.value_dim; ++i) out[i] += p[j] / sum * values[j][i];
  }
  return out;
}

std::vector<double> Wide(const std::vector<float>& x) { return {x.begin(), x.end()}; }

// Numbers as they are kept, which a test may also fill with room for them alone.
class Kept {
 public:
  Kept(ElementType type, int64_t size) : type_(type), bytes_(static_cast<size_t>(size * BytesOf(type))) {}
  Kept(ElementType type, const std::vector<float>& x) : Kept(type, static_cast<int64_t>(x.size())) {
    StoreElements(x.data(), static_cast<int64_t>(x.size()), type, data());
  }
  void* data() { return bytes_.data(); }
  // Widened.
  std::vector<float> Floats() const {
    std::vector<float> values(bytes_.size() / static_cast<size_t>(BytesOf(type_)));
    if (type_ == ElementType::kFloat32) {
      std::memcpy(values.data(), bytes_.data(), bytes_.size());
      return values;
    }
    for (size_t i = 0; i < values.size(); ++i) {  // The upper half of a float's bits.
      uint32_t bits = 0;
      std::memcpy(reinterpret_cast<char*>(&bits) + 2, bytes_.data() + 2 * i, 2);
      std::memcpy(&values[i], &bits, 4);
    }
    return values;
  }

 private:
  ElementType type_;
  std::vector<char> bytes_;
};

class AttentionIn : public testing::TestWithParam<ElementType> {};

TEST_P(AttentionIn, CausalIsTheNaiveSoftmaxOverWhatIsKeptAndARowIsBitwiseTheSameInAnyChunk) {
  const ElementType type = GetParam();
  for (const auto& [heads, kv_heads, dim, value_dim] :
       {std::tuple{4, 2, 16, 16}, {9, 3, 64, 64}, {2, 2, 6, 6}, {3, 3, 20, 12}, {2, 1, 6, 10}}) {
    for (const int64_t length : {1, 5, 40, 71}) {
      const auto seed = static_cast<uint32_t>(heads * 100 + length);
      SCOPED_TRACE(testing::Message() << "seed " << seed << " heads " << heads << " length " << length);
      std::mt19937 rng(seed);
      const HeadShape shape{heads, kv_heads, dim, value_dim, 1.25 / std::sqrt(double(dim))};
      const int64_t capacity = length + 3;
      const std::vector<float> q = Random(rng, length * heads * dim);
      Kept k(type, Random(rng, kv_heads * capacity * dim)), v(type, Random(rng, kv_heads * capacity * value_dim));
      const KvSlots kv{k.data(), v.data(), type, capacity};
      std::vector<float> context(length * heads * value_dim);
      const std::vector<KvRun> whole = {{0, length}};
      CausalAttention(shape, {{0, length, 0, whole}}, q.data(), kv, context.data());
      const std::vector<double> qd = Wide(q), kd = Wide(k.Floats()), vd = Wide(v.Floats());
      for (int64_t r = 0; r < length; ++r) {
        for (int64_t h = 0; h < heads; ++h) {
          std::vector<const double*> keys, values;
          const int64_t shared = h / (heads / kv_heads);
          for (int64_t j = 0; j <= r; ++j) {
            keys.push_back(&kd[(shared * capacity + j) * dim]);
            values.push_back(&vd[(shared * capacity + j) * value_dim]);
          }
          const std::vector<double> expected = Attend(shape, &qd[(r * heads + h) * dim], keys, values);
          for (int64_t i = 0; i < value_dim; ++i) {
            ASSERT_NEAR(context[(r * heads + h) * value_dim + i], expected[i], 1e-5);
          }
        }
      }
      for (const int64_t chunk : {1, 3, 33}) {
        std::vector<float> chunked(context.size());
        for (int64_t start = 0; start < length; start += chunk) {
          const int64_t rows = std::min(chunk, length - start);
          CausalAttention(shape, {{start, rows, start, whole}}, q.data(), kv, chunked.data());
        }
        ASSERT_EQ(0, std::memcmp(chunked.data(), context.data(), context.size() * sizeof(float))) << "chunk " << chunk;
      }
    }
  }
}

// Widening is exact, and the order of sums that of float32: the bits of the same numbers kept in float32.
TEST(CausalAttention, InBfloat16HasTheBitsOfTheRoundedNumbersInFloat32) {
  const HeadShape shape{6, 2, 20, 12, 0.3};
  for (const int64_t length : {1, 7, 80}) {
    std::mt19937 rng(static_cast<uint32_t>(length));
    const std::vector<float> q = Random(rng, length * shape.heads * shape.head_dim);
    Kept k(ElementType::kBfloat16, Random(rng, shape.kv_heads * length * shape.head_dim));
    Kept v(ElementType::kBfloat16, Random(rng, shape.kv_heads * length * shape.value_dim));
    Kept wide_k(ElementType::kFloat32, k.Floats()), wide_v(ElementType::kFloat32, v.Floats());
    const std::vector<KvRun> whole = {{0, length}};
    std::vector<float> narrow(length * shape.heads * shape.value_dim), wide(narrow.size());
    CausalAttention(shape, {{0, length, 0, whole}}, q.data(), {k.data(), v.data(), ElementType::kBfloat16, length},
                    narrow.data());
    CausalAttention(shape, {{0, length, 0, whole}}, q.data(),
                    {wide_k.data(), wide_v.data(), ElementType::kFloat32, length}, wide.data());
    EXPECT_EQ(narrow, wide) << length;
  }
}

// Prompts in chunks, as a server runs them: each chunk stores its own keys first, and reads them where they are kept.
TEST_P(AttentionIn, AChunkReadsItsOwnKeysAsLaterOnesDo) {
  const ElementType type = GetParam();
  const HeadShape shape{4, 2, 16, 12, 0.25};
  const int64_t length = 50, q_size = shape.heads * shape.head_dim;
  const int64_t k_size = shape.kv_heads * shape.head_dim, v_size = shape.kv_heads * shape.value_dim;
  std::mt19937 rng(7);
  const std::vector<float> q = Random(rng, length * q_size), k = Random(rng, length * k_size),
                           v = Random(rng, length * v_size);
  const std::vector<KvRun> whole = {{0, length}};
  const auto run = [&](int64_t chunk) {
    Kept keys(type, length * k_size), values(type, length * v_size);
    const KvSlots kv{keys.data(), values.data(), type, length};
    std::vector<float> context(length * shape.heads * shape.value_dim);
    for (int64_t start = 0; start < length; start += chunk) {
      const SequenceRuns rows{0, std::min(chunk, length - start), start, whole};
      StoreKeysAndValues(shape, {&rows, 1}, k.data() + start * k_size, v.data() + start * v_size, kv);
      CausalAttention(shape, {&rows, 1}, q.data() + start * q_size, kv,
                      context.data() + start * shape.heads * shape.value_dim);
    }
    return context;
  };
  const std::vector<float> expected = run(length);
  for (const int64_t chunk : {1, 2, 17, 49}) EXPECT_EQ(run(chunk), expected) << chunk;
}

TEST_P(AttentionIn, SlotsAnywhereAndOtherSequencesBesideItChangeNoBit) {
  const ElementType type = GetParam();
  for (uint32_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    const HeadShape shape{4, 2, 16, 12, 0.25};
    const int64_t slots = 400, q_size = shape.heads * shape.head_dim, k_size = shape.kv_heads * shape.head_dim;
    const int64_t v_size = shape.kv_heads * shape.value_dim, context_size = shape.heads * shape.value_dim;
    std::vector<int64_t> blocks(slots / 8);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), rng);
    struct Case {
      std::vector<KvRun> kv;
      int64_t length;
      std::vector<float> q, k, v;
    };
    std::vector<Case> cases;
    std::vector<SequenceRuns> sequences;
    std::vector<float> q, k, v;
    for (int64_t c = 0, first_row = 0; c < 4; ++c) {
      Case one;
      one.length = 1 + static_cast<int64_t>(rng() % 90);
      for (int64_t position = 0; position < one.length; position += 8) {
        one.kv.push_back({blocks.back() * 8, std::min<int64_t>(8, one.length - position)});
        blocks.pop_back();
      }
      one.q = Random(rng, one.length * q_size);
      one.k = Random(rng, one.length * k_size);
      one.v = Random(rng, one.length * v_size);
      q.insert(q.end(), one.q.begin(), one.q.end());
      k.insert(k.end(), one.k.begin(), one.k.end());
      v.insert(v.end(), one.v.begin(), one.v.end());
      cases.push_back(std::move(one));
      sequences.push_back({first_row, cases.back().length, 0, {}});
      first_row += cases.back().length;
    }
    for (size_t c = 0; c < cases.size(); ++c) sequences[c].kv = cases[c].kv;
    Kept keys(type, slots * k_size), values(type, slots * v_size);
    const KvSlots kv{keys.data(), values.data(), type, slots};
    std::vector<float> context(q.size() / q_size * context_size);
    StoreKeysAndValues(shape, sequences, k.data(), v.data(), kv);
    CausalAttention(shape, sequences, q.data(), kv, context.data());
    for (size_t c = 0; c < cases.size(); ++c) {
      const Case& one = cases[c];
      const std::vector<KvRun> whole = {{5, one.length}};
      const SequenceRuns alone{0, one.length, 0, whole};
      std::vector<float> expected(one.length * context_size);
      StoreKeysAndValues(shape, {&alone, 1}, one.k.data(), one.v.data(), kv);
      CausalAttention(shape, {&alone, 1}, one.q.data(), kv, expected.data());
      ASSERT_EQ(0, std::memcmp(expected.data(), context.data() + sequences[c].first_row * context_size,
                               expected.size() * sizeof(float)));
    }
  }
}

// A chain with a branch over a prefix of 5, a single row over an empty prefix, and one over a prefix of 3.
struct Tree {
  Tree() {
    rows.case_begin = {0, 4, 5, 6};
    rows.prefix_lengths = {5, 0, 3};
    rows.ancestors = {0, 1, 0, 2, 1, 0, 3, 0, 4, 5};
    rows.ancestor_begin = {0, 1, 3, 6, 8, 9, 10};
    rows.column_begin = {0, 6, 13, 21, 28, 29, 33};
  }
  TreeRows rows;
};

// The tree's prefixes, which lie one after the other, [kv_heads, length, dim] each, in blocks at random places. What of
// a block no position fills is not a number.
class PrefixBlocks {
 public:
  PrefixBlocks(std::mt19937& rng, const HeadShape& shape, const TreeRows& tree, ElementType type,
               int64_t block_positions, const std::vector<float>& keys, const std::vector<float>& values)
      : memory_(type, 0) {
    prefixes_.block_positions = block_positions;
    prefixes_.type = type;
    const int64_t size = block_positions * shape.kv_heads * (shape.head_dim + shape.value_dim);
    std::vector<int64_t> places(20);
    std::iota(places.begin(), places.end(), 0);
    std::shuffle(places.begin(), places.end(), rng);
    std::vector<float> memory(20 * size, std::numeric_limits<float>::quiet_NaN());
    std::vector<std::vector<int64_t>> begins;
    int64_t before = 0;
    for (const int64_t length : tree.prefix_lengths) {
      std::vector<int64_t>& of_case = begins.emplace_back();
      for (int64_t begin = 0; begin < length; begin += block_positions) {
        of_case.push_back(places.back() * size);
        float* const block = memory.data() + of_case.back();
        places.pop_back();
        for (int64_t g = 0; g < shape.kv_heads; ++g) {
          for (int64_t p = begin; p < std::min(length, begin + block_positions); ++p) {
            const int64_t from = before + g * length + p, to = g * block_positions + p - begin;
            std::copy_n(&keys[from * shape.head_dim], shape.head_dim, block + to * shape.head_dim);
            std::copy_n(&values[from * shape.value_dim], shape.value_dim,
                        block + block_positions * shape.kv_heads * shape.head_dim + to * shape.value_dim);
          }
        }
      }
      before += shape.kv_heads * length;
    }
    memory_ = Kept(type, memory);
    for (const std::vector<int64_t>& of_case : begins) {
      std::vector<const void*>& blocks = blocks_.emplace_back();
      for (const int64_t begin : of_case) blocks.push_back(static_cast<char*>(memory_.data()) + begin * BytesOf(type));
    }
    for (const std::vector<const void*>& blocks : blocks_) prefixes_.blocks.push_back(blocks.data());
  }
  const TreePrefixes& prefixes() const { return prefixes_; }

 private:
  Kept memory_;
  std::vector<std::vector<const void*>> blocks_;
  TreePrefixes prefixes_;
};

// sum(weights * context) in double: what the gradients are checked by.
double Objective(const HeadShape& shape, const TreeRows& tree, const std::vector<double>& q,
                 const std::vector<double>& k, const std::vector<double>& v, const std::vector<double>& prefix_k,
                 const std::vector<double>& prefix_v, const std::vector<double>& weights,
                 std::vector<double>* context) {
  const int64_t dim = shape.head_dim, value_dim = shape.value_dim;
  double total = 0;
  int64_t before = 0;  // keys of the cases before
  for (size_t s = 0; s < tree.prefix_lengths.size(); before += shape.kv_heads * tree.prefix_lengths[s++]) {
    for (int64_t r = tree.case_begin[s]; r < tree.case_begin[s + 1]; ++r) {
      for (int64_t h = 0; h < shape.heads; ++h) {
        const int64_t g = h / (shape.heads / shape.kv_heads);
        std::vector<const double*> keys, values;
        for (int64_t j = 0; j < tree.prefix_lengths[s]; ++j) {
          const int64_t at = before + g * tree.prefix_lengths[s] + j;
          keys.push_back(&prefix_k[at * dim]);
          values.push_back(&prefix_v[at * value_dim]);
        }
        for (int64_t i = tree.ancestor_begin[r]; i < tree.ancestor_begin[r + 1]; ++i) {
          keys.push_back(&k[(tree.ancestors[i] * shape.kv_heads + g) * dim]);
          values.push_back(&v[(tree.ancestors[i] * shape.kv_heads + g) * value_dim]);
        }
        const std::vector<double> out = Attend(shape, &q[(r * shape.heads + h) * dim], keys, values);
        total += DotOf(out.data(), &weights[(r * shape.heads + h) * value_dim], value_dim);
        if (context) context->insert(context->end(), out.begin(), out.end());
      }
    }
  }
  return total;
}

TEST_P(AttentionIn, OfTreesIsTheNaiveSoftmaxOverKeptPrefixesAndItsDerivative) {
  const ElementType type = GetParam();
  const Tree tree;
  const HeadShape shape{4, 2, 10, 7, 0.3};
  const int64_t rows = tree.rows.rows(), dim = shape.head_dim, value_dim = shape.value_dim;
  for (const uint32_t seed : {1u, 2u}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    const std::vector<float> q = Random(rng, rows * shape.heads * dim), k = Random(rng, rows * shape.kv_heads * dim),
                             v = Random(rng, rows * shape.kv_heads * value_dim),
                             prefix_k = Random(rng, shape.kv_heads * 8 * dim),
                             prefix_v = Random(rng, shape.kv_heads * 8 * value_dim),
                             dout = Random(rng, rows * shape.heads * value_dim);
    std::vector<float> context, dq, dk, dv;
    for (const int64_t block_positions : {8, 5, 3, 2, 1}) {
      const PrefixBlocks blocks(rng, shape, tree.rows, type, block_positions, prefix_k, prefix_v);
      std::vector<float> p(tree.rows.columns() * shape.heads), out(dout.size()), of_q(q.size()), of_k(k.size()),
          of_v(v.size());
      TreeAttentionForward(shape, tree.rows, q.data(), k.data(), v.data(), blocks.prefixes(), p.data(), out.data());
      TreeAttentionBackward(shape, tree.rows, dout.data(), q.data(), k.data(), v.data(), blocks.prefixes(), p.data(),
                            of_q.data(), of_k.data(), of_v.data());
      if (!context.empty()) {
        EXPECT_TRUE(out == context && of_q == dq && of_k == dk && of_v == dv) << "blocks of " << block_positions;
      }
      context = out;
      dq = of_q;
      dk = of_k;
      dv = of_v;
    }
    std::vector<double> expected, qd = Wide(q), kd = Wide(k), vd = Wide(v);
    const std::vector<double> pk = Wide(Kept(type, prefix_k).Floats()), pv = Wide(Kept(type, prefix_v).Floats());
    const std::vector<double> weights = Wide(dout);
    Objective(shape, tree.rows, qd, kd, vd, pk, pv, weights, &expected);
    for (size_t i = 0; i < context.size(); ++i) ASSERT_NEAR(context[i], expected[i], 1e-5) << i;
    const auto check = [&](std::vector<double>& x, const std::vector<float>& gradient, const char* what) {
      for (size_t i = 0; i < x.size(); ++i) {
        const double kept = x[i];
        x[i] = kept + 1e-4;
        const double above = Objective(shape, tree.rows, qd, kd, vd, pk, pv, weights, nullptr);
        x[i] = kept - 1e-4;
        const double below = Objective(shape, tree.rows, qd, kd, vd, pk, pv, weights, nullptr);
        x[i] = kept;
        ASSERT_NEAR(gradient[i], (above - below) / 2e-4, 2e-5) << what << " " << i;
      }
    };
    check(qd, dq, "dq");
    check(kd, dk, "dk");
    check(vd, dv, "dv");
  }
}

INSTANTIATE_TEST_SUITE_P(Types, AttentionIn, testing::Values(ElementType::kFloat32, ElementType::kBfloat16),
                         [](const auto& type) { return type.param == ElementType::kFloat32 ? "Float32" : "Bfloat16"; });

}  // namespace
}  // namespace c3po::cpu
