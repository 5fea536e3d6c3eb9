#include "server/compute/cpu/softmax_mean.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/server/compute/cpu/instruction_sets.h"

namespace c3po::cpu {
namespace {

struct Result {
  Result(int64_t rows, int64_t k) : tops(rows), means(rows * k, -1), sums(rows) {}
  std::vector<float> tops, means;
  std::vector<double> sums;
};

Result MeanOf(const std::vector<float>& x, int64_t rows, const Matrix& w, float divisor, bool with_means = true) {
  const int64_t k = w.view.columns;
  Result result(rows, k);
  SoftmaxMean({x.data(), k, rows, nullptr}, w.view, divisor, result.tops.data(), result.sums.data(),
              with_means ? result.means.data() : nullptr);
  return result;
}

// Word by word as the header says, in double.
void ExpectNaive(const Result& result, const float* x, int64_t m, const Matrix& w, float divisor) {
  const int64_t n = w.view.rows, k = w.view.columns;
  std::vector<double> logits(n), mean(k, 0.0);
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < k; ++i) logits[j] += double{x[i]} * w.values[j * k + i] / divisor;
  }
  const double top = *std::max_element(logits.begin(), logits.end());
  ASSERT_NEAR(result.tops[m], top, 1e-5 * (1 + std::abs(top)));
  double sum = 0;
  for (double logit : logits) sum += std::exp(logit - top);
  ASSERT_NEAR(result.tops[m] + std::log(result.sums[m]), top + std::log(sum), 1e-5 * (1 + std::abs(top)));
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t i = 0; i < k; ++i) mean[i] += std::exp(logits[j] - top) / sum * w.values[j * k + i];
  }
  for (int64_t i = 0; i < k; ++i) {
    ASSERT_NEAR(result.means[m * k + i], mean[i], 5e-5 + 1e-6 * std::abs(mean[i])) << "column " << i;
  }
}

class SoftmaxMeanTest : public OnInstructionSet {};
INSTANTIATE_TEST_SUITE_P(InstructionSets, SoftmaxMeanTest, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& target) { return std::string(hwy::TargetName(target.param)); });

// One block, several, and several in a chunk.
TEST_P(SoftmaxMeanTest, IsTheNaiveOneAndARowIsBitwiseTheSameAloneAndWithoutMeans) {
  const std::pair<int64_t, int64_t> shapes[] = {{1, 1}, {2, 7}, {25, 17}, {32, 7}, {300, 520}, {304, 520}, {800, 2048}};
  for (const auto& [n, k] : shapes) {
    for (const auto& [bfloat16, layout] : LayoutsOf(n, k)) {
      for (const int64_t rows : {1, 3, 6, 11}) {
        if (n * k > 1000000 && rows != 3) continue;
        const float divisor = rows == 3 ? 4.0f : 1.0f;
        const auto seed = static_cast<uint32_t>(n * 1000 + k + rows);
        SCOPED_TRACE(testing::Message() << "seed " << seed << " bfloat16 " << bfloat16 << " layout "
                                        << static_cast<int>(layout) << " rows " << rows << " n " << n << " k " << k);
        std::mt19937 rng(seed);
        const Matrix w(rng, n, k, bfloat16, layout);
        std::vector<float> x = Random(rng, rows * k);
        for (float& v : x) {
          v *= 3 / std::sqrt(static_cast<float>(k));
          if (layout == WeightLayout::kPairs) v = Widened(RoundedToBfloat16(v));  // As some processors do.
        }
        const Result result = MeanOf(x, rows, w, divisor), bare = MeanOf(x, rows, w, divisor, false);
        EXPECT_EQ(bare.tops, result.tops);
        EXPECT_EQ(bare.sums, result.sums);
        for (int64_t m = 0; m < rows; ++m) {
          if (m < 2 || n * k < 100000) ExpectNaive(result, x.data() + m * k, m, w, divisor);
          const Result alone = MeanOf({x.begin() + m * k, x.begin() + (m + 1) * k}, 1, w, divisor);
          ASSERT_EQ(alone.tops[0], result.tops[m]);
          ASSERT_EQ(alone.sums[0], result.sums[m]);
          ASSERT_EQ(0, std::memcmp(alone.means.data(), result.means.data() + m * k, k * sizeof(float)));
        }
      }
    }
  }
}

// Logits that rise by hundreds from block to block: exponentials relative to the first largest would overflow.
TEST_P(SoftmaxMeanTest, LogitsThatRiseAlongTheVocabularyDoNotOverflow) {
  constexpr int64_t kN = 900, kK = 512;
  std::mt19937 rng(7);
  Matrix w(rng, kN, kK, false);
  for (int64_t j = 0; j < kN; ++j) w.values[j * kK] = w.stored[j * kK] = static_cast<float>(j);
  std::vector<float> x(kK, 0);
  x[0] = 3;
  const Result result = MeanOf(x, 1, w, 1);
  EXPECT_EQ(result.tops[0], 3.0f * (kN - 1));
  ExpectNaive(result, x.data(), 0, w, 1);
}

}  // namespace
}  // namespace c3po::cpu
