#include "server/compute/cuda/readout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/server/compute/cuda/attention_trial.h"

namespace c3po::cuda {
namespace {

using host_cuda::DeviceArray;

size_t At(int64_t i) { return static_cast<size_t>(i); }

struct Read {
  std::vector<RowReadout> rows;
  std::vector<float> scores, top_logits;
  std::vector<int32_t> top_ids;
};

// Logits [rows, V], their rows some floats apart that nobody may read.
struct Logits {
  Logits(int rows, int vocabulary, uint32_t seed) : rows(rows), vocabulary(vocabulary), stride(vocabulary + 3) {
    std::mt19937 random(seed);
    values.assign(At(rows) * At(stride), std::numeric_limits<float>::quiet_NaN());
    for (int r = 0; r < rows; ++r) {
      for (int v = 0; v < vocabulary; ++v) (*this)(r, v) = Normal(random, 1, 4)[0];
    }
  }
  float& operator()(int r, int v) { return values[At(int64_t{r} * stride + v)]; }
  float operator()(int r, int v) const { return values[At(int64_t{r} * stride + v)]; }

  int rows, vocabulary, stride;
  std::vector<float> values;
};

Read ReadAll(const Logits& logits, int top, const std::vector<int32_t>& targets) {
  const int chunks = ReadoutChunks(logits.vocabulary);
  const DeviceArray<float> values(logits.values);
  const DeviceArray<RowReadout> rows(At(logits.rows));
  const DeviceArray<int32_t> target(targets), arrived(std::vector<int32_t>(At(logits.rows), 0));
  const DeviceArray<float> scores(2 * targets.size()), top_logits(At(logits.rows * top));
  const DeviceArray<int32_t> top_ids(top_logits.size());
  const DeviceArray<ChunkReadout> parts(At(logits.rows * chunks));
  const DeviceArray<uint64_t> candidates(At(logits.rows * chunks * top));
  ReadoutArgs args;
  args.logits = values.data();
  args.stride = logits.stride;
  args.rows = logits.rows;
  args.vocabulary = logits.vocabulary;
  args.readouts = rows.data();
  args.targets = target.data();
  args.target_rows = static_cast<int32_t>(targets.size());
  args.scores = scores.data();
  args.top = top;
  args.top_ids = top_ids.data();
  args.top_logits = top_logits.data();
  args.chunks = parts.data();
  args.candidates = candidates.data();
  args.arrived = arrived.data();
  EXPECT_EQ(LaunchReadout(args, nullptr), nullptr);
  EXPECT_EQ(arrived.Values(), std::vector<int32_t>(At(logits.rows), 0));
  return {rows.Values(), scores.Values(), top_logits.Values(), top_ids.Values()};
}

double NormalizerOf(const Logits& logits, int r) {
  double top = -INFINITY, sum = 0;
  for (int v = 0; v < logits.vocabulary; ++v) top = std::max(top, double{logits(r, v)});
  for (int v = 0; v < logits.vocabulary; ++v) sum += std::exp(logits(r, v) - top);
  return top + std::log(sum);
}

// By the larger logit, of equals the lower id.
std::vector<int> Sorted(const Logits& logits, int r) {
  std::vector<int> ids(At(logits.vocabulary));
  for (int v = 0; v < logits.vocabulary; ++v) ids[At(v)] = v;
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return logits(r, a) > logits(r, b); });
  return ids;
}

void ExpectRead(const Logits& logits, const Read& read, int top, const std::vector<int32_t>& targets) {
  for (int r = 0; r < logits.rows; ++r) {
    const std::vector<int> sorted = Sorted(logits, r);
    const RowReadout& row = read.rows[At(r)];
    const double normalizer = NormalizerOf(logits, r);
    EXPECT_EQ(row.finite, 1);
    EXPECT_EQ(row.likeliest, sorted[0]) << "row " << r;
    EXPECT_EQ(row.likeliest_logit, logits(r, sorted[0]));
    EXPECT_NEAR(row.log_normalizer, normalizer, 1e-12 * (1 + std::abs(normalizer)));
    for (int i = 0; i < top; ++i) {
      const bool there = i < logits.vocabulary;
      ASSERT_EQ(read.top_ids[At(r * top + i)], there ? sorted[At(i)] : -1) << "row " << r << " place " << i;
      ASSERT_EQ(read.top_logits[At(r * top + i)], there ? logits(r, sorted[At(i)]) : -INFINITY);
    }
    if (r >= static_cast<int>(targets.size())) continue;
    EXPECT_EQ(read.scores[At(2 * r)], static_cast<float>(logits(r, targets[At(r)]) - row.log_normalizer));
    EXPECT_EQ(read.scores[At(2 * r + 1)], targets[At(r)] == sorted[0] ? 1 : 0);
  }
}

TEST(CudaReadout, IsWhatPlainLoopsGive) {
  for (const int vocabulary : {1, 5, 260, 4095, 4096, 4097, 9000}) {
    Logits logits(3, vocabulary, 1);
    const std::vector<int32_t> targets = {vocabulary - 1, Sorted(logits, 1)[0]};
    for (const int top : {0, 1, 7, 256}) ExpectRead(logits, ReadAll(logits, top, targets), top, targets);
    if (HasFatalFailure()) return;
  }
}

TEST(CudaReadout, OfEqualLogitsTheLowestIdComesFirst) {
  Logits logits(2, 8200, 2);
  for (const int v : {8190, 4100, 4090, 17}) logits(0, v) = 50;
  for (int v = 0; v < 8200; ++v) logits(1, v) = v % 2 == 0 ? 0.0f : -0.0f;
  ExpectRead(logits, ReadAll(logits, 6, {}), 6, {});
}

// More candidates than are sorted at once.
TEST(CudaReadout, PutsManyChunksTogether) {
  const Logits logits(1, 20 * kReadoutChunk - 9, 3);
  ExpectRead(logits, ReadAll(logits, 256, {}), 256, {});
}

TEST(CudaReadout, SaysWhatIsNotFinite) {
  for (const float wrong : {INFINITY, -INFINITY, std::numeric_limits<float>::quiet_NaN()}) {
    for (const int v : {0, 4095, 4096, 4999}) {
      Logits logits(3, 5000, 4);
      logits(1, v) = wrong;
      const std::vector<RowReadout> rows = ReadAll(logits, 2, {}).rows;
      EXPECT_EQ(rows[0].finite, 1);
      EXPECT_EQ(rows[1].finite, 0) << wrong << " at " << v;
      EXPECT_EQ(rows[2].finite, 1);
    }
  }
}

TEST(CudaReadout, LargeLogitsDoNotOverflow) {
  Logits logits(1, 4500, 5);
  for (int v = 0; v < 4500; ++v) logits(0, v) = 1e30f - static_cast<float>(v) * 1e24f;
  logits(0, 4400) = 1e30f;
  ExpectRead(logits, ReadAll(logits, 3, {4400}), 3, {4400});
}

TEST(CudaReadout, BitsDependOnTheRowAlone) {
  const Logits logits(3, 9000, 6);
  host_cuda::SetSeed(1);
  const Read expected = ReadAll(logits, 40, {1, 2, 3});
  for (uint64_t seed = 2; seed < 5; ++seed) {
    host_cuda::SetSeed(seed);
    const Read read = ReadAll(logits, 40, {1, 2, 3});
    EXPECT_EQ(read.top_ids, expected.top_ids);
    for (size_t r = 0; r < 3; ++r) EXPECT_EQ(read.rows[r].log_normalizer, expected.rows[r].log_normalizer);
  }
  for (int r = 0; r < 3; ++r) {
    Logits alone(1, 9000, 7);
    for (int v = 0; v < 9000; ++v) alone(0, v) = logits(r, v);
    EXPECT_EQ(ReadAll(alone, 3, {r}).rows[0].log_normalizer, expected.rows[At(r)].log_normalizer);
  }
}

TEST(CudaTokenLogits, OfTokensAndTheirProbabilities) {
  const Logits logits(4, 300, 8);
  const std::vector<TokenOfRow> tokens = {{0, 0}, {3, 299}, {2, 17}, {2, 18}};
  const DeviceArray<float> values(logits.values), out(4);
  const DeviceArray<TokenOfRow> list(tokens);
  TokenLogitsArgs args{values.data(), logits.stride, list.data(), 4, nullptr, out.data()};
  ASSERT_EQ(LaunchTokenLogits(args, nullptr), nullptr);
  const std::vector<float> plain = out.Values();
  const DeviceArray<RowReadout> readouts(ReadAll(logits, 0, {}).rows);
  args.readouts = readouts.data();
  ASSERT_EQ(LaunchTokenLogits(args, nullptr), nullptr);
  for (size_t i = 0; i < tokens.size(); ++i) {
    const float logit = logits(tokens[i].row, tokens[i].token);
    EXPECT_EQ(plain[i], logit);
    EXPECT_NEAR(out.Values()[i], logit - NormalizerOf(logits, tokens[i].row), 2e-6);
  }
}

TEST(CudaLogitGradient, IsThatOfTheTargets) {
  for (const int vocabulary : {1, 70, 2900}) {
    const Logits logits(4, vocabulary, 9);
    const int last = vocabulary - 1;
    const std::vector<int32_t> begin = {0, 2, 2, 3, 6}, tokens = {0, last, last / 2, last, 0, last};
    const std::vector<float> d = {0.5f, -2, 1.5f, 0.25f, 3, 1};
    // Where they lie among those of all rows.
    const std::vector<int32_t> index = {5, 0, 7, 2, 3, 1};
    std::vector<float> placed(8, std::numeric_limits<float>::quiet_NaN());
    for (size_t t = 0; t < d.size(); ++t) placed[At(index[t])] = d[t];
    const DeviceArray<float> values(logits.values), dlogprobs(placed);
    const DeviceArray<int32_t> target_begin(begin), target_tokens(tokens), target_index(index);
    const DeviceArray<RowReadout> readouts(ReadAll(logits, 0, {}).rows);
    const int padded = (vocabulary + 31) / 32 * 32;
    for (const int planes : {1, 3}) {
      const DeviceArray<uint16_t> out(At(planes * 4 * padded));
      LogitGradientArgs args;
      args.logits = values.data();
      args.stride = logits.stride;
      args.rows = 4;
      args.vocabulary = vocabulary;
      args.readouts = readouts.data();
      args.target_begin = target_begin.data();
      args.target_tokens = target_tokens.data();
      args.target_index = target_index.data();
      args.dlogprobs = dlogprobs.data();
      args.divisor = 4;
      args.planes = planes;
      args.dlogits = {out.data(), int64_t{4} * padded, padded};
      ASSERT_EQ(LaunchLogitGradient(args, nullptr), nullptr);
      const std::vector<uint16_t> bits = out.Values();
      for (int r = 0; r < 4; ++r) {
        double all = 0;
        for (int t = begin[At(r)]; t < begin[At(r + 1)]; ++t) all += double{d[At(t)]};
        for (int v = 0; v < padded; ++v) {
          double expected = 0;
          if (v < vocabulary) expected = -all * std::exp(logits(r, v) - NormalizerOf(logits, r));
          for (int t = begin[At(r)]; t < begin[At(r + 1)]; ++t) expected += tokens[At(t)] == v ? double{d[At(t)]} : 0;
          expected /= 4;
          // Where rows that enter x W have column v.
          const int position = v / 32 * 32 + PositionOf(v % 32);
          double actual = 0;
          for (int p = 0; p < planes; ++p) actual += double{FromBFloat16(bits[At((p * 4 + r) * padded + position)])};
          ASSERT_NEAR(actual, expected, (planes == 1 ? 1.0 / 256 : 2e-6) * std::abs(expected) + 1e-7)
              << "row " << r << " token " << v;
        }
      }
    }
  }
}

}  // namespace
}  // namespace c3po::cuda
