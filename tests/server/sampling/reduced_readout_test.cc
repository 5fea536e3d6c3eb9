#include "server/sampling/reduced_readout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "server/sampling/readout.h"
#include "server/sampling/softmax.h"

namespace c3po {
namespace {

// What a device would tell of logits.
struct Told {
  Told(const std::vector<float>& logits, int count, absl::Span<const int32_t> tokens) {
    ids.resize(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    reduced.likeliest = ids[0];
    reduced.likeliest_logit = logits[ids[0]];
    reduced.log_normalizer = LogNormalizer(logits);
    ids.resize(std::min(ids.size(), static_cast<size_t>(count)));
    for (const int32_t id : ids) largest.push_back(logits[id]);
    for (const int32_t token : tokens) of_tokens.push_back(logits[token]);
    reduced.largest_ids = ids;
    reduced.largest_logits = largest;
    reduced.token_logits = of_tokens;
  }
  std::vector<int32_t> ids;
  std::vector<float> largest, of_tokens;
  ReducedLogits reduced;
};

std::vector<float> Logits(int count) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal(0, 2);
  std::vector<float> logits(static_cast<size_t>(count));
  for (float& logit : logits) logit = std::round(normal(random) * 4) / 4;  // Many are equal.
  return logits;
}

void ExpectSame(const Readout& got, const Readout& expected) {
  ASSERT_EQ(got.status, expected.status);
  EXPECT_EQ(got.token.token_id, expected.token.token_id);
  EXPECT_EQ(got.token.logprob, expected.token.logprob);
  ASSERT_EQ(got.token.top_logprobs.size(), expected.token.top_logprobs.size());
  for (size_t i = 0; i < got.token.top_logprobs.size(); ++i) {
    EXPECT_EQ(got.token.top_logprobs[i].token_id, expected.token.top_logprobs[i].token_id);
    EXPECT_EQ(got.token.top_logprobs[i].logprob, expected.token.top_logprobs[i].logprob);
  }
}

TEST(ReadOutReduced, ChoosesWhatTheWholeLogitsWouldGive) {
  const std::vector<float> logits = Logits(300);
  int drawn = 0;
  for (const double temperature : {0.0, 0.7, 1.5}) {
    for (const int top_k : {1, 5, 40, 290}) {
      for (const double top_p : {1.0, 0.6}) {
        for (const double min_p : {0.0, 0.1}) {
          for (int64_t position = 0; position < 20; ++position) {
            SamplingParams params;
            params.temperature = temperature;
            params.top_k = top_k;
            params.top_p = top_p;
            params.min_p = min_p;
            params.seed = 9;
            params.logprobs = static_cast<int>(position % 4) - 1;
            ReadoutRequest request;
            request.sampling = &params;
            request.position = position;
            const int needed = LargestNeeded(request, 300);
            ASSERT_GE(needed, 0);
            const Told told(logits, needed, {});
            Readout got, expected;
            ReadOut(logits, request, expected);
            ReadOutReduced(told.reduced, request, got);
            ExpectSame(got, expected);
            drawn += got.token.token_id != told.reduced.likeliest ? 1 : 0;
          }
        }
      }
    }
  }
  EXPECT_GT(drawn, 100);
}

TEST(ReadOutReduced, KeepsMoreTokensThanThereAre) {
  const std::vector<float> logits = Logits(7);
  SamplingParams params;
  params.temperature = 1;
  params.top_k = 50;
  params.logprobs = 20;
  ReadoutRequest request;
  request.sampling = &params;
  const Told told(logits, LargestNeeded(request, 256), {});
  Readout got, expected;
  ReadOut(logits, request, expected);
  ReadOutReduced(told.reduced, request, got);
  ExpectSame(got, expected);
}

TEST(ReadOutReduced, SaysTheDistributionAndForgetsTheLastTime) {
  const std::vector<float> logits = Logits(30);
  const std::vector<int32_t> tokens = {3, 29, 3};
  ReadoutRequest request;
  request.distribution = true;
  request.tokens = tokens;
  EXPECT_EQ(LargestNeeded(request, 8), 0);
  Readout got, expected;
  got.status = absl::InternalError("of the last time");
  got.logits = {1};
  got.token_logits = {2};
  ReadOut(logits, request, expected);
  ReadOutReduced(Told(logits, 0, tokens).reduced, request, got);
  EXPECT_TRUE(got.status.ok());
  EXPECT_EQ(got.likeliest, expected.likeliest);
  EXPECT_EQ(got.likeliest_logit, expected.likeliest_logit);
  EXPECT_EQ(got.log_normalizer, expected.log_normalizer);
  EXPECT_EQ(got.token_logits, expected.token_logits);
  EXPECT_TRUE(got.logits.empty());
}

TEST(LargestNeeded, IsNoneWhereEveryLogitIsRead) {
  SamplingParams params;
  ReadoutRequest request;
  request.sampling = &params;
  EXPECT_EQ(LargestNeeded(request, 8), 0);
  params.logprobs = 3;
  EXPECT_EQ(LargestNeeded(request, 8), 3);
  params.temperature = 1;
  EXPECT_EQ(LargestNeeded(request, 8), -1) << "a draw from all tokens";
  params.top_k = 9;
  EXPECT_EQ(LargestNeeded(request, 8), -1) << "a draw from more than are told";
  params.top_k = 8;
  EXPECT_EQ(LargestNeeded(request, 8), 8);
  request.logits = true;
  EXPECT_EQ(LargestNeeded(request, 8), -1);
  request.logits = false;
  params.repetition_penalty = 1.1;
  EXPECT_EQ(LargestNeeded(request, 8), -1);
  params.repetition_penalty = 1;
  params.logit_bias = {{1, 0.5f}};
  EXPECT_EQ(LargestNeeded(request, 8), -1);
  params.logit_bias.clear();
  params.top_p = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(LargestNeeded(request, 8), -1) << "Sample says what is wrong";
}

}  // namespace
}  // namespace c3po
