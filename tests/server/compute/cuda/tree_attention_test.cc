#include "server/compute/cuda/tree_attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <vector>

#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/server/compute/cuda/attention_run.h"
#include "tests/server/compute/cuda/attention_trial.h"
#include "tests/server/compute/cuda/tree_trial.h"

namespace c3po::cuda {
namespace {

using host_cuda::DeviceArray;

struct OwnRows {
  std::vector<float> q, k, v, dcontext;
};

OwnRows RandomRows(const HeadTrial& trial, int rows, std::mt19937& random) {
  return {Normal(random, At(rows * trial.heads * trial.head_dim)),
          Normal(random, At(rows * trial.kv_heads * trial.head_dim)),
          Normal(random, At(rows * trial.kv_heads * trial.value_dim)), Normal(random, At(rows * trial.width()))};
}

struct Passed {
  std::vector<float> probabilities, dq, dk, dv;
  std::vector<uint16_t> context;
  bool operator==(const Passed& other) const = default;
};

Passed Pass(const HeadTrial& trial, const Trees& trees, const OwnRows& own) {
  const auto rows = At(trees.rows());
  const DeviceArray<float> q(own.q), k(own.k), v(own.v), dcontext(own.dcontext);
  const DeviceArray<float> probabilities(At(trees.columns() * trial.heads)), dscores(probabilities.size());
  const DeviceArray<float> dq(q.size()), dk(k.size()), dv(v.size());
  const DeviceArray<uint16_t> context(At(trial.planes) * rows * At(trial.padded_width()));
  TreeBackwardArgs args;
  TreeAttentionArgs& forward = args.forward;
  forward.heads = trial.heads;
  forward.kv_heads = trial.kv_heads;
  forward.head_dim = trial.head_dim;
  forward.value_dim = trial.value_dim;
  forward.scale = kScale;
  forward.tree = trees.Rows();
  forward.prefix = trees.Prefix();
  forward.q = q.data();
  forward.k = k.data();
  forward.v = v.data();
  forward.probabilities = probabilities.data();
  forward.planes = trial.planes;
  forward.context = {context.data(), int64_t{trees.rows()} * trial.padded_width(), trial.padded_width()};
  EXPECT_EQ(LaunchTreeAttention(forward, nullptr), nullptr);
  args.dcontext = dcontext.data();
  args.dscores = dscores.data();
  args.dq = dq.data();
  args.dk = dk.data();
  args.dv = dv.data();
  EXPECT_EQ(LaunchTreeBackward(args, nullptr), nullptr);
  return {probabilities.Values(), dq.Values(), dk.Values(), dv.Values(), context.Values()};
}

void ExpectNear(const std::vector<float>& actual, const std::vector<double>& expected, const char* what) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_NEAR(actual[i], expected[i], 2e-6 * (std::abs(expected[i]) + 2)) << what << " " << i;
  }
}

void ExpectPassed(const HeadTrial& trial, const Trees& trees, const OwnRows& own, const Passed& out) {
  const int dim = trial.head_dim, value_dim = trial.value_dim;
  std::vector<double> dq(own.q.size()), dk(own.k.size()), dv(own.v.size()), probabilities;
  for (int r = 0; r < trees.rows(); ++r) {
    for (int h = 0; h < trial.heads; ++h) {
      const int g = h / trial.group(), count = trees.count(r), at = r * trial.heads + h;
      std::vector<double> p, d;
      double top = -INFINITY, sum = 0, mean = 0;
      for (int j = 0; j < count; ++j) {
        const float* const key = trees.Column(r, j, g, false, own.k);
        const float* const value = trees.Column(r, j, g, true, own.v);
        double dot = 0, along = 0;
        for (int i = 0; i < dim; ++i) dot += double{own.q[At(at * dim + i)]} * key[i];
        for (int i = 0; i < value_dim; ++i) along += double{own.dcontext[At(at * value_dim + i)]} * value[i];
        p.push_back(dot * double{kScale});
        d.push_back(along);
        top = std::max(top, p.back());
      }
      for (double& x : p) sum += x = std::exp(x - top);
      for (double& x : p) x /= sum;
      for (int j = 0; j < count; ++j) mean += p[At(j)] * d[At(j)];
      probabilities.insert(probabilities.end(), p.begin(), p.end());
      for (int c = 0; c < value_dim; ++c) {
        double expected = 0, actual = 0;
        for (int j = 0; j < count; ++j) expected += p[At(j)] * double{trees.Column(r, j, g, true, own.v)[c]};
        for (int plane = 0; plane < trial.planes; ++plane) {
          actual += double{
              FromBFloat16(out.context[At((plane * trees.rows() + r) * trial.padded_width() + h * value_dim + c)])};
        }
        ASSERT_NEAR(actual, expected, (trial.planes == 1 ? 1.0 / 256 : 1e-6) * std::abs(expected) + 1e-6);
      }
      for (int j = 0; j < count; ++j) {
        const double ds = p[At(j)] * (d[At(j)] - mean) * double{kScale};
        for (int i = 0; i < dim; ++i) dq[At(at * dim + i)] += ds * double{trees.Column(r, j, g, false, own.k)[i]};
        if (j < trees.prefix(r)) continue;
        const int a = trees.ancestor(r, j - trees.prefix(r)) * trial.kv_heads + g;
        for (int i = 0; i < dim; ++i) dk[At(a * dim + i)] += ds * double{own.q[At(at * dim + i)]};
        for (int i = 0; i < value_dim; ++i) {
          dv[At(a * value_dim + i)] += p[At(j)] * double{own.dcontext[At(at * value_dim + i)]};
        }
      }
    }
    for (int plane = 0; plane < trial.planes; ++plane) {
      for (int c = trial.width(); c < trial.padded_width(); ++c) {
        ASSERT_EQ(out.context[At((plane * trees.rows() + r) * trial.padded_width() + c)], 0);
      }
    }
  }
  ExpectNear(out.probabilities, probabilities, "probability");
  ExpectNear(out.dq, dq, "dq");
  ExpectNear(out.dk, dk, "dk");
  ExpectNear(out.dv, dv, "dv");
}

HeadTrial Trial(int heads, int kv_heads, int head_dim, int value_dim, int rope_dim, HeadNorm norm, int planes) {
  HeadTrial trial;
  trial.heads = heads;
  trial.kv_heads = kv_heads;
  trial.head_dim = head_dim;
  trial.value_dim = value_dim;
  trial.rope_dim = rope_dim;
  trial.norm = norm;
  trial.planes = planes;
  return trial;
}

TEST(CudaTreeAttention, IsWhatDoublePrecisionGivesThereAndBack) {
  const struct {
    HeadTrial trial;
    bool bfloat16;
  } trials[] = {
      {Trial(6, 3, 40, 24, 24, HeadNorm::kNone, 3), false},  {Trial(4, 4, 16, 16, 16, HeadNorm::kNone, 1), true},
      {Trial(3, 1, 14, 6, 6, HeadNorm::kNone, 3), true},     {Trial(2, 2, 192, 130, 64, HeadNorm::kNone, 3), false},
      {Trial(2, 1, 256, 256, 64, HeadNorm::kNone, 1), true},
  };
  for (const auto& [trial, bfloat16] : trials) {
    std::mt19937 random(1);
    std::vector<Case> cases;
    for (const int prefix : {0, 1, 8, 70}) cases.push_back(RandomCase(trial, bfloat16, prefix, 1 + prefix % 7, random));
    const Trees trees(trial, bfloat16, cases);
    const OwnRows own = RandomRows(trial, trees.rows(), random);
    ExpectPassed(trial, trees, own, Pass(trial, trees, own));
    if (HasFatalFailure()) return;
  }
}

TEST(CudaTreeAttention, BitsDependOnTheCaseAlone) {
  const HeadTrial trial = Trial(4, 2, 40, 24, 24, HeadNorm::kNone, 1);
  std::mt19937 random(2);
  const std::vector<Case> cases = {RandomCase(trial, true, 33, 4, random), RandomCase(trial, true, 90, 6, random)};
  const Trees both(trial, true, cases), alone(trial, true, {cases[1]});
  const OwnRows own = RandomRows(trial, 10, random);
  host_cuda::SetSeed(1);
  const Passed expected = Pass(trial, both, own);
  for (uint64_t seed = 2; seed < 5; ++seed) {
    host_cuda::SetSeed(seed);
    EXPECT_TRUE(Pass(trial, both, own) == expected);
  }
  const auto behind = [](const auto& all, size_t rows, size_t of) {
    return typename std::decay_t<decltype(all)>(all.begin() + static_cast<std::ptrdiff_t>(all.size() / of * rows),
                                                all.end());
  };
  const Passed last = Pass(
      trial, alone, {behind(own.q, 4, 10), behind(own.k, 4, 10), behind(own.v, 4, 10), behind(own.dcontext, 4, 10)});
  EXPECT_EQ(last.dq, behind(expected.dq, 4, 10));
  EXPECT_EQ(last.dk, behind(expected.dk, 4, 10));
  EXPECT_EQ(last.dv, behind(expected.dv, 4, 10));
  EXPECT_EQ(last.context, behind(expected.context, 4, 10));
}

// J = sum of dy y over a row's transformed heads; its derivatives by central differences.
std::vector<double> Differences(const std::vector<float>& x,
                                const std::function<double(const std::vector<double>&)>& j) {
  constexpr double kStep = 1e-5;
  std::vector<double> at(x.begin(), x.end()), slopes;
  for (double& entry : at) {
    const double middle = entry;
    entry = middle + kStep;
    const double above = j(at);
    entry = middle - kStep;
    slopes.push_back((above - j(at)) / (2 * kStep));
    entry = middle;
  }
  return slopes;
}

void ExpectTransformBackward(const HeadTrial& trial) {
  constexpr int kRows = 3;
  std::mt19937 random(3);
  const TransformOracle oracle(trial, random);
  std::vector<RawRow> raw;
  std::vector<AttentionRow> rows;
  for (int r = 0; r < kRows; ++r) {
    raw.push_back(RandomRow(trial, random));
    rows.push_back({0, 5 + 40 * r});
  }
  const OwnRows gradients = RandomRows(trial, kRows, random);  // of q, k and v
  const RowsOnDevice source(trial, raw);
  const HeadSource& from = source.source();
  const DeviceArray<AttentionRow> device_rows(rows);
  const DeviceArray<float> dq(gradients.q), dk(gradients.k), dv(gradients.v);
  const DeviceArray<float> out(At(kRows * from.q_stride)), expanded(At(kRows * from.k_stride));
  const float* const raw_base = from.q;
  const float* const pair_base = trial.shared_key ? from.k : raw_base;
  HeadsBackwardArgs args;
  args.transform = oracle.Args();
  args.source = from;
  args.rows = device_rows.data();
  args.row_count = kRows;
  args.dq = dq.data();
  args.dk = dk.data();
  args.dv = dv.data();
  float* const pairs = trial.shared_key ? expanded.data() : out.data();
  args.gradient = {out.data(), pairs + (from.k - pair_base), pairs + (from.v - pair_base),
                   trial.shared_key ? out.data() + (from.shared_key - raw_base) : nullptr};
  ASSERT_EQ(LaunchHeadsBackward(args, nullptr), nullptr);
  // A gradient lies where the row that it is of lies, in `raw_back` or `pair_back`.
  const std::vector<float> raw_back = out.Values(), pair_back = trial.shared_key ? expanded.Values() : raw_back;
  const auto k_at = from.k - pair_base, v_at = from.v - pair_base;
  const auto shared_at = trial.shared_key ? from.shared_key - raw_base : 0;
  const int dim = trial.head_dim, kept = trial.shared_key ? trial.plain() : dim;
  for (int r = 0; r < kRows; ++r) {
    const int position = rows[At(r)].position;
    const auto objective = [&](bool queries, const std::vector<float>& dy, int size) {
      return [&, queries, size](const std::vector<double>& x) {
        const std::vector<double> y = oracle.Heads(x, queries, position);
        double sum = 0;
        for (int i = 0; i < size; ++i) sum += y[At(i)] * double{dy[At(r * size + i)]};
        return sum;
      };
    };
    const std::vector<double> q = Differences(raw[At(r)].q, objective(true, gradients.q, trial.heads * dim));
    const std::vector<double> k = Differences(raw[At(r)].k, objective(false, gradients.k, trial.kv_heads * dim));
    for (size_t i = 0; i < q.size(); ++i) {
      ASSERT_NEAR(raw_back[At(r * from.q_stride) + i], q[i], 1e-5 * (std::abs(q[i]) + 1));
    }
    std::vector<double> shared(At(trial.rope_dim));
    for (int g = 0; g < trial.kv_heads; ++g) {
      for (int i = 0; i < dim; ++i) {
        const double expected = k[At(g * dim + i)];
        if (i < kept) {
          ASSERT_NEAR(pair_back[At(k_at + r * from.k_stride + g * from.k_head_stride + i)], expected,
                      1e-5 * (std::abs(expected) + 1));
        } else {
          shared[At(i - kept)] += expected;
        }
      }
      for (int c = 0; c < trial.value_dim; ++c) {
        const int i = g * trial.value_dim + c;
        const float expected = std::abs(raw[At(r)].v[At(i)]) <= trial.clip
                                   ? gradients.v[At(r * trial.kv_heads * trial.value_dim + i)]
                                   : 0.0f;
        ASSERT_EQ(pair_back[At(v_at + r * from.v_stride + g * from.v_head_stride + c)], expected);
      }
    }
    for (int i = 0; trial.shared_key && i < trial.rope_dim; ++i) {
      ASSERT_NEAR(raw_back[At(shared_at + r * from.shared_stride + i)], shared[At(i)],
                  1e-5 * (std::abs(shared[At(i)]) + 1));
    }
  }
}

TEST(CudaHeadsBackward, IsTheDerivativeOfTheTransform) {
  for (const HeadNorm norm : {HeadNorm::kNone, HeadNorm::kWhole, HeadNorm::kPerHead}) {
    for (const float clip : {static_cast<float>(INFINITY), 0.8f}) {
      HeadTrial trial = Trial(6, 3, 40, 24, 24, norm, 1);
      trial.clip = clip;
      ExpectTransformBackward(trial);
    }
    ExpectTransformBackward(Trial(2, 2, 64, 64, 64, norm, 1));
  }
  HeadTrial trial = Trial(3, 3, 22, 14, 6, HeadNorm::kNone, 1);
  trial.shared_key = true;
  ExpectTransformBackward(trial);
}

// As a neighbor is prepared: its prompt is a sequence in a cache of the pass, and the tree's rows have the cache's
// blocks as their prefix. A row of the tree is then what it were as the sequence's next row.
TEST(CudaTreeAttention, TakesAPromptsCacheAsItsPrefix) {
  constexpr int kPrompt = 21, kPositions = 16;
  const HeadTrial trial = Trial(6, 3, 40, 24, 24, HeadNorm::kWhole, 3);
  const Cache cache(trial, kPositions, {kPrompt + 1}, 0, 4);
  CacheRun run(cache);
  run.Fill({kPrompt});
  const std::vector<uint8_t> keys = run.Keys(), values = run.Values();
  const std::vector<uint16_t> expected = run.Step({{0, kPrompt, 1}}, How::kApart, 0);

  const RowsOnDevice source(trial, {cache.Row(0, kPrompt)});
  const DeviceArray<AttentionRow> rows(std::vector<AttentionRow>{{0, kPrompt}});
  const DeviceArray<float> q(At(6 * 40)), k(At(3 * 40)), v(At(3 * 24)), probabilities(At(6 * (kPrompt + 1)));
  RotateArgs rotate;
  rotate.transform = cache.oracle().Args();
  rotate.source = source.source();
  rotate.rows = rows.data();
  rotate.row_count = 1;
  rotate.planes = 3;
  rotate.q = q.data();
  rotate.k = k.data();
  rotate.v = v.data();
  ASSERT_EQ(LaunchRotate(rotate, nullptr), nullptr);

  const DeviceArray<uint8_t> key_cache(keys), value_cache(values);
  std::vector<const void*> key_blocks, value_blocks;
  for (int p = 0; p < kPrompt; p += kPositions) {
    key_blocks.push_back(key_cache.data() + cache.SlotOf(0, p, 0) * At(CacheWidth(40)) * 4);
    value_blocks.push_back(value_cache.data() + cache.SlotOf(0, p, 0) * At(CacheWidth(24)) * 4);
  }
  const DeviceArray<const void*> key_list(key_blocks), value_list(value_blocks);
  const DeviceArray<int32_t> zero(std::vector<int32_t>{0}), prefix(std::vector<int32_t>{kPrompt}),
      ends(std::vector<int32_t>{0, 1});
  const DeviceArray<int64_t> columns(std::vector<int64_t>{0, kPrompt + 1});
  const DeviceArray<uint16_t> context(At(3 * trial.padded_width()));
  TreeAttentionArgs args;
  args.heads = 6;
  args.kv_heads = 3;
  args.head_dim = 40;
  args.value_dim = 24;
  args.scale = kScale;
  args.tree.rows = 1;
  args.tree.row_case = args.tree.block_begin = args.tree.ancestors = zero.data();
  args.tree.prefix_lengths = prefix.data();
  args.tree.ancestor_begin = ends.data();
  args.tree.column_begin = columns.data();
  args.prefix = {key_list.data(), value_list.data(), kPositions, 0};
  args.q = q.data();
  args.k = k.data();
  args.v = v.data();
  args.probabilities = probabilities.data();
  args.planes = 3;
  args.context = {context.data(), trial.padded_width(), trial.padded_width()};
  ASSERT_EQ(LaunchTreeAttention(args, nullptr), nullptr);
  const std::vector<uint16_t> actual = context.Values();
  const auto sum = [&](const std::vector<uint16_t>& planes, int c) {
    double x = 0;
    for (int p = 0; p < 3; ++p) x += double{FromBFloat16(planes[At(p * trial.padded_width() + c)])};
    return x;
  };
  for (int c = 0; c < trial.padded_width(); ++c) {
    EXPECT_NEAR(sum(actual, c), sum(expected, c), 4e-6 * (std::abs(sum(expected, c)) + 1));
  }
}

// As what is kept of a neighbor: the blocks of its prompt go to the states.
TEST(CudaBlockCopies, CopyEachBlockWhole) {
  std::vector<uint8_t> bytes(3 * 4112);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 251);
  const DeviceArray<uint8_t> from(bytes), first(4112), second(4112);
  const DeviceArray<BlockCopy> copies({{from.data() + 2 * 4112, first.data()}, {from.data(), second.data()}});
  ASSERT_EQ(LaunchBlockCopies({copies.data(), 2, 4112}, nullptr), nullptr);
  EXPECT_EQ(first.Values(), std::vector<uint8_t>(bytes.begin() + 2 * 4112, bytes.end()));
  EXPECT_EQ(second.Values(), std::vector<uint8_t>(bytes.begin(), bytes.begin() + 4112));
}

}  // namespace
}  // namespace c3po::cuda
