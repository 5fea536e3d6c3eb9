#include "tests/host_cuda/sample_kernels.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/every_order.h"

namespace c3po::host_cuda {
namespace {

float Widen(uint16_t bits) { return std::bit_cast<float>(uint32_t{bits} << 16); }

TEST(SampleKernels, ShareDividesByTheSum) {
  for (const int n : {1, 31, 200, 256}) {
    std::vector<float> x(static_cast<size_t>(n));
    for (size_t i = 0; i < x.size(); ++i) x[i] = 1.0f / static_cast<float>(i + 1);
    const DeviceArray<float> in(x);
    const std::vector<float> y = ResultOfEveryOrder([&] {
      const DeviceArray<float> out(x.size());
      EXPECT_STREQ(LaunchShare({in.data(), out.data(), n}, nullptr), nullptr);
      return out.Values();
    });
    const double sum = std::accumulate(x.begin(), x.end(), 0.0);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i] / sum, 1e-6) << "n " << n << ", i " << i;
  }
}

TEST(SampleKernels, ScanSumsFromTheFirstLane) {
  std::vector<int> x(96), expected(96);
  std::iota(x.begin(), x.end(), 5);
  for (size_t i = 0; i < x.size(); ++i) expected[i] = x[i] + (i % 32 == 0 ? 0 : expected[i - 1]);
  const DeviceArray<int> in(x);
  EXPECT_EQ(ResultOfEveryOrder([&] {
              const DeviceArray<int> out(x.size());
              EXPECT_STREQ(LaunchScan({in.data(), out.data()}, 3, nullptr), nullptr);
              return out.Values();
            }),
            expected);
}

TEST(SampleKernels, ReverseGoesThroughSharedMemory) {
  std::vector<int> x(32);
  std::iota(x.begin(), x.end(), 100);
  const DeviceArray<int> in(x);
  EXPECT_EQ(ResultOfEveryOrder([&] {
              const DeviceArray<int> out(32);
              EXPECT_STREQ(LaunchReverse({in.data(), out.data()}, nullptr), nullptr);
              return out.Values();
            }),
            std::vector<int>(x.rbegin(), x.rend()));
}

TEST(SampleKernels, ProductIsThatOfPlainLoops) {
  for (const size_t k : {16u, 32u, 112u}) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    const auto numbers = [&](size_t count) {
      std::vector<uint16_t> made(count);
      for (uint16_t& bits : made) bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(normal(random)) >> 16);
      return made;
    };
    const std::vector<uint16_t> a = numbers(32 * k), b = numbers(k * 8);
    const DeviceArray<uint16_t> device_a(a), device_b(b);
    const std::vector<float> y = ResultOfEveryOrder([&] {
      const DeviceArray<float> out(32 * 8);
      EXPECT_STREQ(LaunchProduct({device_a.data(), device_b.data(), out.data(), static_cast<int>(k)}, nullptr),
                   nullptr);
      return out.Values();
    });
    for (size_t row = 0; row < 32; ++row) {
      for (size_t column = 0; column < 8; ++column) {
        double sum = 0, size = 0;
        for (size_t i = 0; i < k; ++i) {
          const double product = double{Widen(a[row * k + i])} * double{Widen(b[i * 8 + column])};
          sum += product;
          size += std::abs(product);
        }
        ASSERT_NEAR(y[row * 8 + column], sum, 1e-6 * size) << "k " << k << ", row " << row << ", column " << column;
      }
    }
  }
}

}  // namespace
}  // namespace c3po::host_cuda
