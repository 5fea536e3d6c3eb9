#include "server/compute/cuda/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "tests/host_cuda/kernel_run.h"
#include "tests/server/compute/cuda/attention_run.h"
#include "tests/server/compute/cuda/attention_trial.h"

namespace c3po::cuda {
namespace {

// What the cache holds at positions [0, end) against the transform in double precision.
void ExpectCached(const Cache& cache, const CacheRun& run, int sequence, int end) {
  const HeadTrial& trial = cache.trial();
  const std::vector<uint8_t> keys = run.Keys(), values = run.Values();
  const double tolerance = trial.planes == 1 ? 1.0 / 256 : 1e-5;
  for (int p = 0; p < end; ++p) {
    const std::vector<double> k = cache.oracle().Heads(cache.Row(sequence, p).k, false, p);
    const std::vector<double> v = cache.oracle().Values(cache.Row(sequence, p).v);
    for (int g = 0; g < trial.kv_heads; ++g) {
      const size_t slot = cache.SlotOf(sequence, p, g);
      for (int i = 0; i < CacheWidth(trial.head_dim); ++i) {
        const double expected = i < trial.head_dim ? k[static_cast<size_t>(g * trial.head_dim + i)] : 0;
        ASSERT_NEAR(cache.Entry(keys, trial.head_dim, slot, i), expected, tolerance * (std::abs(expected) + 0.1))
            << "key of position " << p << " head " << g << " entry " << i;
      }
      for (int i = 0; i < CacheWidth(trial.value_dim); ++i) {
        const double expected = i < trial.value_dim ? v[static_cast<size_t>(g * trial.value_dim + i)] : 0;
        ASSERT_NEAR(cache.Entry(values, trial.value_dim, slot, i), expected, tolerance * (std::abs(expected) + 0.1))
            << "value of position " << p << " head " << g << " entry " << i;
      }
    }
  }
}

// Row `row` of a step's context, at `position` of `sequence`, against plain loops on what the cache holds.
void ExpectContext(const Cache& cache, const CacheRun& run, const std::vector<uint16_t>& context, int rows, int row,
                   int sequence, int position) {
  const HeadTrial& trial = cache.trial();
  const std::vector<uint8_t> keys = run.Keys(), values = run.Values();
  const std::vector<double> q = cache.oracle().Heads(cache.Row(sequence, position).q, true, position);
  // The context is rounded to as many planes; scores are sums of some hundred, with exponentials behind them.
  const double relative = trial.planes == 1 ? 1.0 / 256 : 4e-6, absolute = trial.planes == 1 ? 1e-4 : 2e-6;
  for (int h = 0; h < trial.heads; ++h) {
    const int g = h / trial.group();
    std::vector<double> p(static_cast<size_t>(position + 1));
    double top = -INFINITY, sum = 0;
    for (int j = 0; j <= position; ++j) {
      double dot = 0;
      for (int i = 0; i < trial.head_dim; ++i) {
        dot += q[static_cast<size_t>(h * trial.head_dim + i)] *
               double{cache.Entry(keys, trial.head_dim, cache.SlotOf(sequence, j, g), i)};
      }
      p[static_cast<size_t>(j)] = dot * double{kScale};
      top = std::max(top, p[static_cast<size_t>(j)]);
    }
    for (double& x : p) sum += x = std::exp(x - top);
    for (int c = 0; c < trial.value_dim; ++c) {
      double expected = 0;
      for (int j = 0; j <= position; ++j) {
        expected += p[static_cast<size_t>(j)] / sum *
                    double{cache.Entry(values, trial.value_dim, cache.SlotOf(sequence, j, g), c)};
      }
      double actual = 0;
      for (int plane = 0; plane < trial.planes; ++plane) {
        actual += double{FromBFloat16(
            context[static_cast<size_t>((plane * rows + row) * trial.padded_width() + h * trial.value_dim + c)])};
      }
      ASSERT_NEAR(actual, expected, relative * std::abs(expected) + absolute)
          << "sequence " << sequence << " position " << position << " head " << h << " entry " << c;
    }
  }
  for (int plane = 0; plane < trial.planes; ++plane) {
    for (int c = trial.width(); c < trial.padded_width(); ++c) {
      ASSERT_EQ(context[static_cast<size_t>((plane * rows + row) * trial.padded_width() + c)], 0);
    }
  }
}

// Row `row` of a step as bits.
std::vector<uint16_t> RowBits(const HeadTrial& trial, const std::vector<uint16_t>& context, int rows, int row) {
  std::vector<uint16_t> bits;
  for (int plane = 0; plane < trial.planes; ++plane) {
    const auto begin = context.begin() + (plane * rows + row) * trial.padded_width();
    bits.insert(bits.end(), begin, begin + trial.padded_width());
  }
  return bits;
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

// One row of each of several sequences, whose first `beginning` positions are shared.
void ExpectDecode(const HeadTrial& trial, int block_positions, const std::vector<int>& contexts, int beginning, How how,
                  int workers) {
  const Cache cache(trial, block_positions, contexts, beginning, 7);
  CacheRun run(cache);
  std::vector<int> before;
  std::vector<Rows> step;
  for (size_t s = 0; s < contexts.size(); ++s) {
    before.push_back(contexts[s] - 1);
    step.push_back({static_cast<int>(s), contexts[s] - 1, 1});
  }
  run.Fill(before);
  const std::vector<uint16_t> context = run.Step(step, how, workers);
  for (size_t s = 0; s < contexts.size(); ++s) {
    const int sequence = static_cast<int>(s);
    ExpectCached(cache, run, sequence, contexts[s]);
    ExpectContext(cache, run, context, static_cast<int>(contexts.size()), sequence, sequence, contexts[s] - 1);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

const HeadTrial kOdd = Trial(6, 3, 40, 24, 24, HeadNorm::kPerHead, 1);
const HeadTrial kOddFloat = Trial(6, 3, 40, 24, 24, HeadNorm::kWhole, 3);

TEST(CudaAttention, DecodeIsWhatDoublePrecisionGives) {
  ExpectDecode(Trial(4, 4, 16, 16, 16, HeadNorm::kWhole, 1), 16, {1, 2, 17}, 0, How::kFused, 0);
  ExpectDecode(kOdd, 5, {255, 256, 257, 1, 128, 129}, 0, How::kFused, 3);
  ExpectDecode(kOddFloat, 16, {255, 256, 257, 1, 128, 129}, 0, How::kFused, 0);
  ExpectDecode(Trial(3, 3, 12, 14, 6, HeadNorm::kNone, 3), 1, {30, 600}, 0, How::kFused, 2);
  ExpectDecode(Trial(8, 1, 128, 128, 128, HeadNorm::kPerHead, 1), 16, {40, 600}, 0, How::kFused, 2);
}

TEST(CudaAttention, WideHeadsAndManyHeadsOfAGroup) {
  ExpectDecode(Trial(2, 2, 256, 256, 64, HeadNorm::kNone, 1), 16, {35}, 0, How::kFused, 0);
  ExpectDecode(Trial(2, 2, 256, 200, 64, HeadNorm::kNone, 3), 16, {35}, 0, How::kFused, 1);
  ExpectDecode(Trial(40, 2, 72, 96, 72, HeadNorm::kNone, 1), 16, {140}, 0, How::kApart, 0);
}

TEST(CudaAttention, OneRotatedKeyForAllHeads) {
  HeadTrial trial = Trial(3, 3, 192, 128, 64, HeadNorm::kNone, 1);
  trial.shared_key = true;
  ExpectDecode(trial, 16, {33, 130}, 0, How::kFused, 2);
  trial = Trial(4, 4, 22, 14, 6, HeadNorm::kNone, 3);
  trial.shared_key = true;
  ExpectDecode(trial, 5, {33, 130}, 0, How::kApart, 0);
}

TEST(CudaAttention, ClipsAfterTheNorm) {
  HeadTrial trial = kOddFloat;
  trial.clip = 0.7f;
  ExpectDecode(trial, 16, {21, 3}, 0, How::kFused, 0);
}

// The last block of what is shared is not full; the slots behind hold NaN.
TEST(CudaAttention, SequencesShareTheirBeginning) {
  for (const int block_positions : {1, 5, 16}) {
    ExpectDecode(kOdd, block_positions, {22, 60, 23}, 21, How::kFused, 0);
    ExpectDecode(kOddFloat, block_positions, {150, 131}, 130, How::kApart, 2);
  }
}

// Rows of one sequence attend to each other, whoever writes and reads first.
void ExpectPrefill(const HeadTrial& trial, int block_positions, int start, int rows, int workers) {
  const Cache cache(trial, block_positions, {start + rows}, 0, 3);
  CacheRun run(cache);
  run.Fill({start});
  const std::vector<uint16_t> context = run.Step({{0, start, rows}}, How::kTiles, workers);
  ExpectCached(cache, run, 0, start + rows);
  for (int i = 0; i < rows && !::testing::Test::HasFatalFailure(); ++i) {
    ExpectContext(cache, run, context, rows, i, 0, start + i);
  }
}

TEST(CudaAttention, PrefillIsWhatDoublePrecisionGives) {
  ExpectPrefill(kOdd, 16, 0, 37, 0);
  ExpectPrefill(kOdd, 5, 120, 20, 1);
  ExpectPrefill(kOddFloat, 5, 0, 19, 2);
  ExpectPrefill(Trial(3, 1, 16, 16, 16, HeadNorm::kNone, 1), 16, 0, 40, 0);  // 5 rows a tile, 15 of 16 slots.
  ExpectPrefill(Trial(2, 2, 64, 64, 64, HeadNorm::kWhole, 1), 16, 250, 30, 0);
}

// The rows of sequences, one step after another, as bits; and what the cache holds in the end.
struct Bits {
  std::map<std::pair<int, int>, std::vector<uint16_t>> rows;
  std::vector<uint8_t> keys, values;
};

Bits BitsOf(const Cache& cache, const std::vector<int>& filled, const std::vector<std::vector<Rows>>& steps, How how,
            int workers, uint64_t seed, int padding = 0) {
  host_cuda::SetSeed(seed);
  CacheRun run(cache);
  run.Fill(filled);
  Bits bits;
  for (const std::vector<Rows>& step : steps) {
    const std::vector<uint16_t> context = run.Step(step, how, workers, padding);
    int count = padding, row = 0;
    for (const Rows& part : step) count += part.rows;
    for (const Rows& part : step) {
      for (int i = 0; i < part.rows; ++i) {
        bits.rows[{part.sequence, part.start + i}] = RowBits(cache.trial(), context, count, row++);
      }
    }
  }
  bits.keys = run.Keys();
  bits.values = run.Values();
  return bits;
}

void ExpectSame(const Bits& a, const Bits& b, const std::string& what) {
  EXPECT_TRUE(a.rows == b.rows) << what;
  EXPECT_TRUE(a.keys == b.keys) << what;
  EXPECT_TRUE(a.values == b.values) << what;
}

TEST(CudaAttention, DecodeBitsDoNotDependOnThePlanNorOnTheOrderOfThreads) {
  for (const HeadTrial& trial : {kOdd, kOddFloat, Trial(8, 2, 16, 16, 16, HeadNorm::kNone, 1)}) {
    const Cache cache(trial, 5, {300, 17, 129}, 11, 5);
    const std::vector<int> filled = {299, 16, 128};
    const std::vector<Rows> step = {{0, 299, 1}, {1, 16, 1}, {2, 128, 1}};
    const Bits expected = BitsOf(cache, filled, {step}, How::kFused, 0, 1);
    for (uint64_t seed = 2; seed < 5; ++seed) {
      ExpectSame(BitsOf(cache, filled, {step}, How::kFused, 0, seed), expected, "another order");
    }
    for (const int workers : {1, 2, 5}) {
      ExpectSame(BitsOf(cache, filled, {step}, How::kFused, workers, 6), expected, "splits over blocks");
    }
    ExpectSame(BitsOf(cache, filled, {step}, How::kApart, 0, 7), expected, "rotated before");
    ExpectSame(BitsOf(cache, filled, {step}, How::kTiles, 2, 8), expected, "tiles");
    ExpectSame(BitsOf(cache, filled, {step}, How::kFused, 2, 9, 3), expected, "padding rows");
    ExpectSame(BitsOf(cache, filled, {{step[2]}, {step[0]}, {step[1]}}, How::kFused, 0, 10), expected, "alone");
  }
}

TEST(CudaAttention, PromptBitsDoNotDependOnItsChunks) {
  for (const HeadTrial& trial : {kOdd, kOddFloat}) {
    const Cache cache(trial, 16, {140, 60}, 9, 11);
    const std::vector<int> filled = {100, 9};
    const Bits expected = BitsOf(cache, filled, {{{0, 100, 40}, {1, 9, 51}}}, How::kTiles, 0, 1);
    ExpectSame(BitsOf(cache, filled, {{{1, 9, 51}, {0, 100, 40}}}, How::kTiles, 3, 2), expected, "other neighbors");
    ExpectSame(BitsOf(cache, filled, {{{0, 100, 7}, {1, 9, 1}}, {{1, 10, 50}}, {{0, 107, 33}}}, How::kTiles, 0, 3),
               expected, "several chunks");
    std::vector<std::vector<Rows>> singly;
    for (int i = 0; i < 51; ++i) {
      singly.push_back({{1, 9 + i, 1}});
      if (i < 40) singly.back().push_back({0, 100 + i, 1});
    }
    ExpectSame(BitsOf(cache, filled, singly, How::kFused, 0, 4), expected, "one row at a time");
    ExpectSame(BitsOf(cache, filled, {{{0, 100, 40}}, {{1, 9, 51}}}, How::kApart, 1, 5), expected, "no tiles");
  }
}

// As a NaN in the residual stream would do: it is seen in its own row, and in those that attend to its keys, only.
TEST(CudaAttention, WhatIsNoNumberStaysInItsSequence) {
  for (const How how : {How::kFused, How::kTiles}) {
    Cache cache(kOdd, 16, {30, 40}, 0, 13);
    const Bits expected = BitsOf(cache, {29, 39}, {{{0, 29, 1}, {1, 39, 1}}}, how, 0, 1);
    cache.MakeNan(1, 39);
    const Bits bits = BitsOf(cache, {29, 39}, {{{0, 29, 1}, {1, 39, 1}}}, how, 0, 2);
    EXPECT_EQ(bits.rows.at({0, 29}), expected.rows.at({0, 29}));
    for (int c = 0; c < kOdd.width(); ++c) {
      EXPECT_TRUE(std::isnan(FromBFloat16(bits.rows.at({1, 39})[static_cast<size_t>(c)])));
    }
  }
}

}  // namespace
}  // namespace c3po::cuda
