// What rounding activations costs beside quantized weights, and whose activations are rounded.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "server/compute/cpu/thread_pool.h"
#include "tests/server/compute/cpu/instruction_sets.h"
#include "tests/server/compute/cpu/quantized_matrix.h"

namespace c3po::cpu {
namespace {

// Root mean squares of a product's outputs, of their error by 4-bit weights, and of what rounding activations adds.
struct Errors {
  double outputs = 0, weights = 0, activations = 0;
};
// x [rows, 512].
Errors ErrorsOf(const std::vector<float>& x) {
  constexpr int64_t kN = 96, kK = 512;
  const auto rows = static_cast<int64_t>(x.size()) / kK;
  std::mt19937 rng(23);
  const std::vector<float> exact = Random(rng, kN * kK);
  QuantizedMatrix w(exact, kN, kK, WeightLayout::kInt4);
  w.view.rounds_activations = true;
  std::vector<float> y(rows * kN);
  MultiplyTransposed({{{x.data(), kK, rows, nullptr}, w.view, {y.data(), kN, nullptr}}});
  Errors squares;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t j = 0; j < kN; ++j) {
      double of_exact = 0, of_quantized = 0;
      for (int64_t k = 0; k < kK; ++k) {
        of_exact += double{x[m * kK + k]} * exact[j * kK + k];
        of_quantized += double{x[m * kK + k]} * w.values[j * kK + k];
      }
      squares.outputs += of_exact * of_exact;
      squares.weights += (of_quantized - of_exact) * (of_quantized - of_exact);
      squares.activations += (y[m * kN + j] - of_quantized) * (y[m * kN + j] - of_quantized);
    }
  }
  return {std::sqrt(squares.outputs), std::sqrt(squares.weights), std::sqrt(squares.activations)};
}

// The figures of quantized_panels.h: 9 % by weights; 0.6 % and 1.2 % by activations.
TEST(RoundedActivations, CostFarLessThanWeightsOfFourBitsDo) {
  std::mt19937 rng(29);
  const std::vector<float> gaussian = Random(rng, 6 * 512);
  std::vector<float> tails(gaussian.size()), outliers = gaussian;
  std::student_t_distribution<float> student(2);
  for (float& each : tails) each = student(rng);
  for (float& each : outliers) each *= rng() % 64 == 0 ? 50 : 1;
  const Errors of_gaussian = ErrorsOf(gaussian);
  EXPECT_NEAR(of_gaussian.weights / of_gaussian.outputs, 0.09, 0.01);
  EXPECT_NEAR(of_gaussian.activations / of_gaussian.outputs, 0.006, 0.001);
  for (const std::vector<float>& x : {tails, outliers}) {
    const Errors errors = ErrorsOf(x);
    EXPECT_NEAR(errors.weights / errors.outputs, 0.09, 0.015);
    EXPECT_NEAR(errors.activations / errors.outputs, 0.012, 0.003);
  }
}

// A thread rounds the rows of a product once for all its blocks: those of another product, or of a later job at the
// same address, are others.
TEST(RoundedActivations, AreEachJobsAndProductsOwn) {
  constexpr int64_t kN = 1024, kK = 256;  // Of several blocks.
  for (const WeightLayout layout : {WeightLayout::kInt8, WeightLayout::kInt4}) {
    std::mt19937 rng(17);
    QuantizedMatrix w(Random(rng, kN * kK), kN, kK, layout);
    w.view.rounds_activations = true;
    std::vector<float> x(2 * kK), y(2 * kN), alone(kN);
    const std::vector<DotProduct> products = {{{x.data(), kK, 1, nullptr}, w.view, {y.data(), kN, nullptr}},
                                              {{x.data() + kK, kK, 1, nullptr}, w.view, {y.data() + kN, kN, nullptr}}};
    for (int job = 0; job < 5; ++job) {
      const std::vector<float> fresh = Random(rng, 2 * kK);
      std::copy(fresh.begin(), fresh.end(), x.begin());
      MultiplyTransposed(products);
      for (int64_t i = 0; i < 2; ++i) {
        MultiplyTransposedHere({products[i].x, w.view, {alone.data(), kN, nullptr}});
        ASSERT_EQ(0, std::memcmp(alone.data(), y.data() + i * kN, kN * sizeof(float))) << "job " << job;
      }
    }
  }
}

}  // namespace
}  // namespace c3po::cpu
