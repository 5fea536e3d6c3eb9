#include "server/compute/cpu/row_operations.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

namespace c3po::cpu {
namespace {

std::vector<float> Random(std::mt19937& rng, int64_t size) {
  std::vector<float> values(size);
  for (float& v : values) v = 2 * std::normal_distribution<float>()(rng);
  return values;
}

// Every case with sizes around the vector's; the seed is the size.
class RowOperations : public testing::TestWithParam<int64_t> {
 protected:
  const int64_t size_ = GetParam();
  const int64_t rows_ = 5;
  std::mt19937 rng_{static_cast<uint32_t>(GetParam())};
};

TEST_P(RowOperations, RmsNormIsItsFormula) {
  const int64_t stride = size_ + 3;
  const std::vector<float> x = Random(rng_, rows_ * stride), weight = Random(rng_, size_);
  std::vector<float> y(rows_ * size_);
  RmsNormRows(x.data(), stride, weight.data(), 1e-5, rows_, size_, y.data());
  for (int64_t r = 0; r < rows_; ++r) {
    double square = 0;
    for (int64_t i = 0; i < size_; ++i) square += double{x[r * stride + i]} * x[r * stride + i];
    for (int64_t i = 0; i < size_; ++i) {
      const double expected = x[r * stride + i] / std::sqrt(square / size_ + 1e-5) * weight[i];
      ASSERT_NEAR(y[r * size_ + i], expected, 1e-6 * (1 + std::abs(expected))) << "row " << r << " entry " << i;
    }
  }
}

// Against central differences of the formula in double.
TEST_P(RowOperations, RmsNormBackwardIsTheDerivative) {
  const std::vector<float> x = Random(rng_, size_), dy = Random(rng_, size_), weight = Random(rng_, size_),
                           add = Random(rng_, size_);
  std::vector<float> dx(size_), plain(size_);
  RmsNormBackwardRows(dy.data(), x.data(), size_, weight.data(), add.data(), 1e-2, 1, size_, dx.data());
  RmsNormBackwardRows(dy.data(), x.data(), size_, weight.data(), nullptr, 1e-2, 1, size_, plain.data());
  const auto value = [&](int64_t at, double step) {
    double square = 0, sum = 0;
    for (int64_t i = 0; i < size_; ++i) square += std::pow(x[i] + (i == at ? step : 0), 2);
    for (int64_t i = 0; i < size_; ++i) {
      sum += dy[i] * (x[i] + (i == at ? step : 0)) / std::sqrt(square / size_ + 1e-2) * weight[i];
    }
    return sum;
  };
  for (int64_t i = 0; i < size_; ++i) {
    const double expected = (value(i, 1e-4) - value(i, -1e-4)) / 2e-4;
    ASSERT_NEAR(plain[i], expected, 1e-4 * (1 + std::abs(expected)) + 1e-5 * size_) << "entry " << i;
    ASSERT_NEAR(dx[i], double{plain[i]} + add[i], 1e-5 * (1 + std::abs(expected) + std::abs(add[i])));
  }
}

TEST_P(RowOperations, RotationTurnsEachHalfPairAndItsInverseTurnsBack) {
  const int64_t half = size_, heads = 3, stride = heads * 2 * half + 5;
  const std::vector<float> x = Random(rng_, rows_ * stride);
  std::vector<float> cos(rows_ * half), sin(rows_ * half), y(rows_ * heads * 2 * half), back(y.size());
  for (size_t i = 0; i < cos.size(); ++i) {
    const double angle = std::uniform_real_distribution<double>(-3, 3)(rng_);
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
  }
  RotateRows(x.data(), stride, cos.data(), sin.data(), false, rows_, heads, half, y.data());
  RotateRows(y.data(), heads * 2 * half, cos.data(), sin.data(), true, rows_, heads, half, back.data());
  for (int64_t r = 0; r < rows_; ++r) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t from = r * stride + h * 2 * half, to = (r * heads + h) * 2 * half;
      for (int64_t i = 0; i < half; ++i) {
        const double a = x[from + i], b = x[from + half + i], c = cos[r * half + i], s = sin[r * half + i];
        ASSERT_NEAR(y[to + i], a * c - b * s, 2e-6 * (std::abs(a) + std::abs(b)));
        ASSERT_NEAR(y[to + half + i], b * c + a * s, 2e-6 * (std::abs(a) + std::abs(b)));
        ASSERT_NEAR(back[to + i], a, 4e-6 * (std::abs(a) + std::abs(b)));
      }
    }
  }
}

TEST_P(RowOperations, SumOfChosenRowsIsAddedInTheirOrder) {
  const int64_t count = 3;
  const std::vector<float> x = Random(rng_, rows_ * size_);
  const std::vector<int64_t> index = {4, 0, 2, 1, 1, 3};
  std::vector<float> y(2 * size_, -1);
  SumRows(x.data(), index.data(), 2, count, size_, y.data());
  for (int64_t r = 0; r < 2; ++r) {
    for (int64_t i = 0; i < size_; ++i) {
      float expected = x[index[r * count] * size_ + i];
      for (int64_t j = 1; j < count; ++j) expected += x[index[r * count + j] * size_ + i];
      ASSERT_EQ(y[r * size_ + i], expected) << "row " << r << " entry " << i;
    }
  }
}

TEST_P(RowOperations, SwigluAndItsBackwardAreTheirFormulas) {
  const int64_t blocks = 4;
  std::vector<float> gate_up = Random(rng_, blocks * 2 * size_);
  gate_up[0] = -100;  // Where exp(-x) overflows.
  const std::vector<float> scale = Random(rng_, blocks), t = Random(rng_, blocks * size_);
  std::vector<float> out(blocks * size_), dscale(blocks), dgate_up(gate_up.size());
  SwigluBlocks(gate_up.data(), scale.data(), blocks, size_, out.data());
  SwigluBackwardBlocks(t.data(), gate_up.data(), scale.data(), blocks, size_, dscale.data(), dgate_up.data());
  for (int64_t b = 0; b < blocks; ++b) {
    double sum = 0, magnitude = 0;
    for (int64_t i = 0; i < size_; ++i) {
      const double g = gate_up[b * 2 * size_ + i], u = gate_up[b * 2 * size_ + size_ + i], s = 1 / (1 + std::exp(-g));
      const double dt = t[b * size_ + i], c = scale[b];
      ASSERT_NEAR(out[b * size_ + i], c * g * s * u, 2e-6 * (1 + std::abs(c * g * u)));
      sum += dt * g * s * u;
      magnitude += std::abs(dt * g * s * u);
      ASSERT_NEAR(dgate_up[b * 2 * size_ + i], dt * c * u * s * (1 + g * (1 - s)),
                  4e-6 * (1 + std::abs(dt * c * u * g)));
      ASSERT_NEAR(dgate_up[b * 2 * size_ + size_ + i], dt * c * g * s, 4e-6 * (1 + std::abs(dt * c * g)));
    }
    ASSERT_NEAR(dscale[b], sum, 1e-6 * (1 + magnitude)) << "block " << b;
  }
}

TEST_P(RowOperations, SoftmaxAndSumOfExpAreTheirFormulas) {
  const std::vector<float> x = Random(rng_, size_ + 7);
  std::vector<float> p = x;
  SoftmaxInPlace(p.data(), size_, size_ + 7, 0.3f);
  double sum = 0, scaled = 0;
  float largest = x[0];
  for (int64_t i = 0; i < size_; ++i) largest = std::max(largest, x[i]);
  for (int64_t i = 0; i < size_; ++i) {
    sum += std::exp(double{x[i]} - largest);
    scaled += std::exp(0.3f * (double{x[i]} - largest));
  }
  for (int64_t i = 0; i < size_; ++i) ASSERT_NEAR(p[i], std::exp(0.3f * (double{x[i]} - largest)) / scaled, 1e-6);
  for (int64_t i = size_; i < size_ + 7; ++i) ASSERT_EQ(p[i], 0);
  float top = 0;
  EXPECT_NEAR(SumOfExp(x.data(), size_, &top), sum, 1e-6 * sum);
  EXPECT_EQ(top, largest);
  std::vector<float> e = x;
  ScaledExpInPlace(e.data(), size_, 1.5f, -2.0f);
  for (int64_t i = 0; i < size_; ++i) {
    const double expected = -2 * std::exp(double{x[i]} - 1.5);
    ASSERT_NEAR(e[i], expected, 1e-5 * std::abs(expected));
  }
  EXPECT_EQ(e[size_], x[size_]);
}

float Widened(uint16_t half) {
  const uint32_t bits = uint32_t{half} << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

TEST_P(RowOperations, OfBfloat16HaveTheBitsOfTheWidenedNumbers) {
  const std::vector<float> x = Random(rng_, size_), y = Random(rng_, size_);
  std::vector<uint16_t> half(size_);
  RoundToBfloat16(y.data(), size_, half.data());
  std::vector<float> wide(size_);
  std::transform(half.begin(), half.end(), wide.begin(), Widened);
  EXPECT_EQ(Dot(x.data(), half.data(), size_), Dot(x.data(), wide.data(), size_));
  double expected = 0;
  for (int64_t i = 0; i < size_; ++i) expected += double{x[i]} * wide[i];
  EXPECT_NEAR(Dot(x.data(), half.data(), size_), expected, 1e-5 * (1 + static_cast<double>(size_)));
  std::vector<float> narrow_sum = x, wide_sum = x;
  AddScaled(0.7f, half.data(), size_, narrow_sum.data());
  AddScaled(0.7f, wide.data(), size_, wide_sum.data());
  EXPECT_EQ(narrow_sum, wide_sum);
}

// Against the two neighbors in bfloat16, compared in double: random bits, ties, the ends of each range.
TEST(RowOperations, RoundingToBfloat16IsToTheNearestAndTiesToEven) {
  std::mt19937 rng(5);
  std::vector<uint32_t> all = {0,          1,          0x7FFF,     0x8000,     0x8001,
                               0x3F808000, 0x3F818000, 0x3F817FFF, 0x3F818001, 0x7F7F7FFF,
                               0x7F7F8000, 0x7F800000, 0x7F800001, 0x7FBFFFFF, 0x7FFFFFFF};
  for (int i = 0; i < 20000; ++i) {
    const auto bits = static_cast<uint32_t>(rng());
    all.push_back(i % 4 == 0 ? (bits & 0xFFFF0000) | 0x8000 : bits);
  }
  for (size_t i = 0, count = all.size(); i < count; ++i) all.push_back(all[i] | 0x80000000);
  std::vector<float> x(all.size());
  std::memcpy(x.data(), all.data(), all.size() * sizeof(float));
  std::vector<uint16_t> rounded(x.size());
  RoundToBfloat16(x.data(), static_cast<int64_t>(x.size()), rounded.data());
  for (size_t i = 0; i < x.size(); ++i) {
    SCOPED_TRACE(testing::Message() << std::hex << all[i]);
    if (std::isnan(x[i])) {
      ASSERT_TRUE(std::isnan(Widened(rounded[i])));
      continue;
    }
    const auto below = static_cast<uint16_t>(all[i] >> 16);  // Towards zero.
    const bool infinite = (all[i] & 0x7FFFFFFF) == 0x7F800000;
    // Beyond the largest number the next one would be 2^128, which is written as infinity.
    const double low = std::abs(double{Widened(below)}), value = std::abs(double{x[i]});
    const double high = (below & 0x7FFF) == 0x7F7F ? std::ldexp(1.0, 128) : std::abs(double{Widened(below + 1)});
    const bool up = !infinite && (value - low > high - value || (value - low == high - value && (below & 1) != 0));
    ASSERT_EQ(rounded[i], static_cast<uint16_t>(below + (up ? 1 : 0)));
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, RowOperations, testing::Values(1, 7, 8, 9, 16, 31, 48, 64, 577, 9000));

}  // namespace
}  // namespace c3po::cpu
