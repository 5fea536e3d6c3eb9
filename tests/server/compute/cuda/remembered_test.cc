#include "server/compute/cuda/remembered.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/server/compute/cuda/device_rows.h"

namespace c3po::cuda {
namespace {

constexpr int kRows = 3, kD = 300, kExperts = 6, kPerRow = 3;

class Remembered : public testing::Test {
 protected:
  Remembered()
      : outputs_(RandomFloats(kRows * kExperts, kD, random_)),
        shared_(RandomFloats(kRows, kD, random_)),
        x_(RandomFloats(kRows, kD, random_)),
        weights_(RandomFloats(kRows, kPerRow, random_)),
        on_device_{DeviceArray<float>(outputs_.values), DeviceArray<float>(shared_.values),
                   DeviceArray<float>(x_.values), DeviceArray<float>(weights_.values)},
        selected_on_device_(selected_) {}

  double Output(int row, int expert, int column) const { return outputs_(row * kExperts + expert, column); }

  std::mt19937 random_{7};
  Floats outputs_, shared_, x_, weights_;
  const std::vector<int> selected_ = {4, 0, 5, 2, -1, 1, 3, kExperts, 0};  // Two that count nothing.
  struct {
    DeviceArray<float> outputs, shared, x, weights;
  } on_device_;
  DeviceArray<int> selected_on_device_;
};

TEST_F(Remembered, MixesWhatRowsSelectedWithAndWithoutASharedExpert) {
  for (const bool shared : {false, true}) {
    for (const int seed : {0, 1, 2}) {
      host_cuda::SetSeed(static_cast<uint64_t>(seed));
      const DeviceArray<float> out(size_t{kRows} * kD);
      ASSERT_EQ(
          LaunchMixRemembered({kRows, kD, kExperts, kPerRow, on_device_.outputs.data(), selected_on_device_.data(),
                               on_device_.weights.data(), shared ? on_device_.shared.data() : nullptr,
                               on_device_.x.data(), 0.5f, out.data()},
                              nullptr),
          nullptr);
      const std::vector<float> got = out.Values();
      for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < kD; ++c) {
          double sum = shared ? shared_(r, c) : 0;
          for (int j = 0; j < kPerRow; ++j) {
            const int expert = selected_[static_cast<size_t>(r * kPerRow + j)];
            if (expert >= 0 && expert < kExperts) sum += double{weights_(r, j)} * Output(r, expert, c);
          }
          EXPECT_NEAR(got[static_cast<size_t>(r * kD + c)], x_(r, c) + 0.5 * sum, 4e-6);
        }
      }
    }
  }
}

TEST_F(Remembered, BackwardIsTheDotProductWithEachSelectedOutput) {
  const DeviceArray<float> dweights(size_t{kRows} * kPerRow);
  ASSERT_EQ(LaunchMixRememberedBackward({kRows, kD, kExperts, kPerRow, on_device_.outputs.data(),
                                         selected_on_device_.data(), on_device_.x.data(), 0.5f, dweights.data()},
                                        nullptr),
            nullptr);
  const std::vector<float> got = dweights.Values();
  for (int r = 0; r < kRows; ++r) {
    for (int j = 0; j < kPerRow; ++j) {
      const size_t pair = static_cast<size_t>(r * kPerRow + j);
      double sum = 0, size = 0;
      for (int c = 0; c < kD && selected_[pair] >= 0 && selected_[pair] < kExperts; ++c) {
        sum += double{x_(r, c)} * Output(r, selected_[pair], c);
        size += std::abs(double{x_(r, c)} * Output(r, selected_[pair], c));
      }
      EXPECT_NEAR(got[pair], 0.5 * sum, 1e-6 * size) << pair;
    }
  }
}

TEST(SelectAll, NamesEveryExpertOfEveryRow) {
  const DeviceArray<int> selected(size_t{70} * 5);
  ASSERT_EQ(LaunchSelectAll({70, 5, selected.data()}, nullptr), nullptr);
  const std::vector<int> got = selected.Values();
  for (size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], static_cast<int>(i % 5));
}

}  // namespace
}  // namespace c3po::cuda
