#include "server/sampling/softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace c3po {
namespace {

std::vector<double> WeightsOf(const std::vector<float>& logits, float top, double temperature) {
  std::vector<double> weights(logits.size(), -1);
  SoftmaxWeights(logits, top, temperature, absl::MakeSpan(weights));
  return weights;
}

TEST(SoftmaxWeights, AreTheExponentialsInEveryPlaceOfAVector) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 8);
  for (size_t size = 1; size <= 70; ++size) {
    for (const double temperature : {0.05, 0.7, 1.0, 30.0}) {
      std::vector<float> logits(size);
      for (float& logit : logits) logit = normal(random);
      const float top = *std::max_element(logits.begin(), logits.end());
      const std::vector<double> weights = WeightsOf(logits, top, temperature);
      for (size_t i = 0; i < size; ++i) {
        const auto exact = static_cast<double>(std::exp((static_cast<long double>(logits[i]) - top) / temperature));
        if (exact > 1e-300) {
          ASSERT_NEAR(weights[i] / exact, 1, 1e-12) << size << " logits, " << i;
        } else {
          ASSERT_LE(weights[i], 1e-299);
          ASSERT_GE(weights[i], 0);
        }
      }
    }
  }
}

TEST(SoftmaxWeights, TheLargestIsExactlyOneAndTheFarthestZero) {
  constexpr float kMax = std::numeric_limits<float>::max();
  const std::vector<double> weights = WeightsOf({3, 3, -kMax, 2.9375f, -1e30f}, 3, 1e-3);
  EXPECT_EQ(weights[0], 1);
  EXPECT_EQ(weights[1], 1);
  EXPECT_EQ(weights[2], 0);
  EXPECT_NEAR(weights[3], std::exp(-62.5), 1e-12 * std::exp(-62.5));
  EXPECT_EQ(weights[4], 0);
  for (const double temperature : {1e-30, 1e-310}) {  // The exponent is infinite; one over the temperature is.
    EXPECT_EQ(WeightsOf({kMax, -kMax}, kMax, temperature), (std::vector<double>{1, 0}));
  }
}

TEST(LogNormalizer, MakesProbabilitiesSumToOne) {
  for (const size_t size : {1, 7, 1000}) {
    std::vector<float> logits(size);
    for (size_t i = 0; i < size; ++i) logits[i] = 100 + static_cast<float>(i % 13);
    const double normalizer = LogNormalizer(logits);
    double sum = 0;
    for (const float logit : logits) sum += std::exp(logit - normalizer);
    EXPECT_NEAR(sum, 1, 1e-12);
  }
}

}  // namespace
}  // namespace c3po
