#include "server/compute/cpu/matrix_products.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "server/compute/cpu/thread_pool.h"
#include "tests/server/compute/cpu/instruction_sets.h"

namespace c3po::cpu {
namespace {

// Several threads wherever this runs: the results must not depend on it.
const bool kThreadsSet = (ThreadPool::SetThreads(3), true);

// Sum of `count` products in double, and the sum of their magnitudes, which bounds float32's rounding.
struct Exact {
  double value = 0, size = 0;
  void Add(double a, double b) {
    value += a * b;
    size += std::abs(a * b);
  }
  double bound() const { return 1e-6 * size + 1e-30; }
};

class MatrixProducts : public OnInstructionSet {};

INSTANTIATE_TEST_SUITE_P(InstructionSets, MatrixProducts, testing::ValuesIn(hwy::SupportedAndGeneratedTargets()),
                         [](const auto& target) { return std::string(hwy::TargetName(target.param)); });

const int64_t kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 29, 30, 31, 32, 90};
const std::pair<int64_t, int64_t> kShapes[] = {{1, 1},  {3, 5},    {8, 8},     {24, 48},  {25, 17},
                                               {7, 64}, {100, 96}, {70, 131},  {257, 40}, {64, 520},
                                               {16, 5}, {48, 64},  {160, 131}, {528, 40}};

TEST_P(MatrixProducts, DotFormIsTheNaiveSumAndARowIsBitwiseTheSameAlone) {
  for (const auto& [n, k] : kShapes) {
    for (const auto& [bfloat16, layout] : LayoutsOf(n, k)) {
      const auto seed = static_cast<uint32_t>(n * 1000 + k);
      std::mt19937 rng(seed);
      const Matrix w(rng, n, k, bfloat16, layout);
      for (const int64_t rows : kRows) {
        SCOPED_TRACE(testing::Message() << "seed " << seed << " bfloat16 " << bfloat16 << " layout "
                                        << static_cast<int>(layout) << " rows " << rows << " n " << n << " k " << k);
        std::vector<float> x = Random(rng, rows * k);
        // What a unit of the processor would round in either case.
        if (layout == WeightLayout::kPairs) {
          for (float& value : x) value = Widened(RoundedToBfloat16(value));
        }
        std::vector<float> y(rows * n, -1), alone(n);
        MultiplyTransposed({{{x.data(), k, rows, nullptr}, w.view, {y.data(), n, nullptr}}});
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t j = 0; j < n; ++j) {
            Exact exact;
            for (int64_t i = 0; i < k; ++i) exact.Add(x[m * k + i], w.values[j * k + i]);
            ASSERT_NEAR(y[m * n + j], exact.value, exact.bound()) << "row " << m << " column " << j;
          }
          MultiplyTransposed({{{x.data() + m * k, k, 1, nullptr}, w.view, {alone.data(), n, nullptr}}});
          ASSERT_EQ(0, std::memcmp(alone.data(), y.data() + m * n, n * sizeof(float))) << "row " << m;
        }
      }
    }
  }
}

TEST_P(MatrixProducts, OuterFormIsTheNaiveSumAndARowIsBitwiseTheSameAlone) {
  for (const auto& [n, k] : kShapes) {
    for (const auto& [bfloat16, layout] : LayoutsOf(n, k)) {
      const auto seed = static_cast<uint32_t>(n * 1000 + k);
      std::mt19937 rng(seed);
      const Matrix w(rng, n, k, bfloat16, layout);
      for (const int64_t rows : kRows) {
        SCOPED_TRACE(testing::Message() << "seed " << seed << " bfloat16 " << bfloat16 << " layout "
                                        << static_cast<int>(layout) << " rows " << rows << " n " << n << " k " << k);
        const std::vector<float> a = Random(rng, rows * n), start = Random(rng, rows * k);
        std::vector<float> y = start;
        MultiplyAdd({{{a.data(), n, rows, nullptr}, w.view, {y.data(), k, nullptr}}});
        for (int64_t m = 0; m < rows; ++m) {
          for (int64_t i = 0; i < k; ++i) {
            Exact exact;
            exact.Add(1, start[m * k + i]);
            for (int64_t j = 0; j < n; ++j) exact.Add(a[m * n + j], w.values[j * k + i]);
            ASSERT_NEAR(y[m * k + i], exact.value, 2 * exact.bound()) << "row " << m << " column " << i;
          }
          std::vector<float> alone(start.begin() + m * k, start.begin() + (m + 1) * k);
          MultiplyAdd({{{a.data() + m * n, n, 1, nullptr}, w.view, {alone.data(), k, nullptr}}});
          ASSERT_EQ(0, std::memcmp(alone.data(), y.data() + m * k, k * sizeof(float))) << "row " << m;
        }
      }
    }
  }
}

// Panels hold what the rows hold, each weight where the header says.
TEST(Panels, HoldTheRowsOfTheMatrix) {
  const uint32_t seed = 3;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 1}, {48, 7}, {640, 300}}) {
    for (const auto& [bfloat16, layout] : LayoutsOf(n, k)) {
      if (layout == WeightLayout::kRows) continue;
      const Matrix w(rng, n, k, bfloat16, layout);
      std::vector<uint16_t> row(k);
      for (int64_t j = 0; j < n; ++j) {
        if (bfloat16) CopyPanelRow(w.view.data, layout, true, k, j, row.data());
        for (int64_t i = 0; i < k; ++i) {
          const int64_t at = j / kPanelRows * kPanelRows * k + PanelOffset(layout, bfloat16, j % kPanelRows, i);
          const float value = bfloat16 ? Widened(w.bits[at]) : w.stored[at];
          ASSERT_EQ(value, w.values[j * k + i]) << "row " << j << " column " << i;
          if (bfloat16) {
            ASSERT_EQ(Widened(row[i]), value) << "row " << j << " column " << i;
          }
        }
      }
    }
  }
}

// y is overwritten, whatever is in it.
TEST_P(MatrixProducts, IndependentProductsSideBySideAreThoseProductsOneByOneAddedToZero) {
  const uint32_t seed = 11;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  const int64_t k = 200;
  for (const int64_t rows : {int64_t{1}, int64_t{3}, int64_t{40}}) {
    std::vector<Matrix> w;
    std::vector<int64_t> counts;
    for (int64_t e = 0; e < 6; ++e) {
      const WeightLayout layout = e < 4 ? WeightLayout::kRows : WeightLayout::kPanels;
      w.emplace_back(rng, e < 4 ? 90 + 7 * e : 96 + 16 * e, k, e % 2 == 1, layout);
      counts.push_back(e == 2 ? 0 : rows + e);
    }
    std::vector<std::vector<float>> a, y;
    std::vector<OuterProduct> products;
    for (size_t e = 0; e < w.size(); ++e) {
      a.push_back(Random(rng, counts[e] * w[e].view.rows));
      y.push_back(Random(rng, counts[e] * k));
      products.push_back({{a[e].data(), w[e].view.rows, counts[e], nullptr}, w[e].view, {y[e].data(), k, nullptr}});
    }
    Multiply(products);
    for (size_t e = 0; e < w.size(); ++e) {
      for (int64_t m = 0; m < counts[e]; ++m) {
        std::vector<float> alone(k, 0.0f);
        MultiplyAdd(
            {{{a[e].data() + m * w[e].view.rows, w[e].view.rows, 1, nullptr}, w[e].view, {alone.data(), k, nullptr}}});
        ASSERT_EQ(0, std::memcmp(alone.data(), y[e].data() + m * k, k * sizeof(float)))
            << "product " << e << " row " << m;
      }
    }
  }
}

// Experts: each takes its own rows of a shared matrix, and adds to rows of a shared result.
TEST_P(MatrixProducts, SeveralProductsOverChosenRowsAreThoseProductsOneByOne) {
  const int64_t n = 96, k = 200, rows = 40, experts = 5;
  const uint32_t seed = 7;
  SCOPED_TRACE(testing::Message() << "seed " << seed);
  std::mt19937 rng(seed);
  std::vector<Matrix> w;
  const WeightLayout layouts[] = {WeightLayout::kRows, WeightLayout::kRows, WeightLayout::kRows, WeightLayout::kPairs,
                                  WeightLayout::kPanels};
  for (int64_t e = 0; e < experts; ++e) w.emplace_back(rng, n, k, e % 2 == 1, layouts[e]);
  const std::vector<float> x = Random(rng, rows * k);
  std::vector<std::vector<int64_t>> chosen(experts);
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t m = 0; m < rows; ++m) {
      if (rng() % 3 == 0) chosen[e].push_back(m);
    }
  }
  chosen[2].clear();
  std::vector<std::vector<float>> between(experts);
  std::vector<DotProduct> in;
  std::vector<OuterProduct> out;
  std::vector<float> y(rows * k, 0), expected(rows * k, 0);
  for (int64_t e = 0; e < experts; ++e) {
    const auto own = static_cast<int64_t>(chosen[e].size());
    between[e].resize(own * n);
    in.push_back({{x.data(), k, own, chosen[e].data()}, w[e].view, {between[e].data(), n, nullptr}});
    out.push_back({{between[e].data(), n, own, nullptr}, w[e].view, {y.data(), k, chosen[e].data()}});
  }
  MultiplyTransposed(in);
  MultiplyAdd(out);
  for (int64_t e = 0; e < experts; ++e) {
    for (size_t i = 0; i < chosen[e].size(); ++i) {
      std::vector<float> row(n);
      const int64_t m = chosen[e][i];
      MultiplyTransposed({{{x.data() + m * k, k, 1, nullptr}, w[e].view, {row.data(), n, nullptr}}});
      MultiplyAdd({{{row.data(), n, 1, nullptr}, w[e].view, {expected.data() + m * k, k, nullptr}}});
    }
  }
  EXPECT_EQ(y, expected);
}

}  // namespace
}  // namespace c3po::cpu
