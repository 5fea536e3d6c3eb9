#include "server/sampling/readout.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "server/sampling/sampler.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

const std::vector<float> kLogits = {0, 2, -1, 2, 0.5f};

double Sum() {
  double sum = 0;
  for (const float logit : kLogits) sum += std::exp(double{logit});
  return sum;
}

TEST(ReadOut, SaysTheDistributionAndTheLogitsOfTokens) {
  ReadoutRequest request;
  EXPECT_FALSE(request.wanted());
  const std::vector<int32_t> tokens = {4, 1, 4};
  request.distribution = true;
  request.tokens = tokens;
  EXPECT_TRUE(request.wanted());
  Readout readout;
  ReadOut(kLogits, request, readout);
  ASSERT_TRUE(readout.status.ok()) << readout.status;
  EXPECT_EQ(readout.likeliest, 1);  // Of two that are as likely.
  EXPECT_NEAR(readout.log_normalizer, std::log(Sum()), 1e-12);
  EXPECT_NEAR(readout.largest_probability(), std::exp(2.0) / Sum(), 1e-12);
  EXPECT_EQ(readout.token_logits, (std::vector<float>{0.5f, 2, 0.5f}));
  EXPECT_NEAR(readout.logprob(1), 2 - std::log(Sum()), 1e-6);
  EXPECT_TRUE(readout.logits.empty());
}

TEST(ReadOut, ChoosesAsTheSamplerDoesAndKeepsNothingOfTheLastTime) {
  SamplingParams sampling;
  sampling.temperature = 1.5;
  sampling.logprobs = 2;
  sampling.repetition_penalty = 1.3;
  const std::vector<int32_t> context = {1, 3};
  Readout readout;
  ReadoutRequest request;
  request.distribution = request.logits = true;
  request.tokens = context;
  ReadOut(kLogits, request, readout);
  EXPECT_EQ(readout.logits, kLogits);
  for (int64_t position = 0; position < 50; ++position) {
    ReadoutRequest drawn;
    drawn.sampling = &sampling;
    drawn.context = context;
    drawn.position = position;
    ReadOut(kLogits, drawn, readout);
    const SampledToken expected = *Sample(kLogits, sampling, context, position);
    EXPECT_EQ(readout.token.token_id, expected.token_id);
    EXPECT_EQ(readout.token.logprob, expected.logprob);
    EXPECT_EQ(readout.token.top_logprobs.size(), 2u);
    EXPECT_TRUE(readout.token_logits.empty() && readout.logits.empty());
  }
}

TEST(ReadOut, RefusesWhatIsNoNumberWhateverIsWanted) {
  SamplingParams sampling;
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
    for (const bool samples : {false, true}) {
      std::vector<float> logits = kLogits;
      logits[2] = bad;
      ReadoutRequest request;
      request.distribution = true;
      if (samples) request.sampling = &sampling;
      Readout readout;
      ReadOut(logits, request, readout);
      EXPECT_TRUE(IsNotANumber(readout.status)) << readout.status;
      ReadOut(kLogits, request, readout);
      EXPECT_TRUE(readout.status.ok()) << readout.status;
    }
  }
}

TEST(ReadOut, RefusesTokensOutsideTheVocabularyAndWrongSampling) {
  for (const int32_t outside : {-1, 5}) {
    const std::vector<int32_t> tokens = {0, outside};
    ReadoutRequest request;
    request.distribution = true;
    request.tokens = tokens;
    Readout readout;
    ReadOut(kLogits, request, readout);
    EXPECT_TRUE(absl::IsInvalidArgument(readout.status)) << readout.status;
  }
  SamplingParams sampling;
  sampling.top_p = 0;
  ReadoutRequest request;
  request.sampling = &sampling;
  Readout readout;
  ReadOut(kLogits, request, readout);
  EXPECT_TRUE(absl::IsInvalidArgument(readout.status)) << readout.status;
}

}  // namespace
}  // namespace c3po
