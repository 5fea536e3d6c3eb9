#ifndef C3PO_TESTS_SERVER_COMPUTE_CPU_INSTRUCTION_SETS_H_
#define C3PO_TESTS_SERVER_COMPUTE_CPU_INSTRUCTION_SETS_H_

#include "server/compute/cpu/compiled_targets.h"
// After it.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "server/compute/cpu/matrix_products.h"
#include "server/compute/cpu/panels.h"

namespace c3po::cpu {

inline std::vector<float> Random(std::mt19937& rng, int64_t size) {
  std::vector<float> values(size);
  for (float& v : values) v = std::normal_distribution<float>()(rng);
  return values;
}

// To the nearest bfloat16, ties to even; what is not a number stays so.
inline uint16_t RoundedToBfloat16(float value) {
  if (std::isnan(value)) return 0x7FC0;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}
inline float Widened(uint16_t bits) {
  const uint32_t whole = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &whole, sizeof(value));
  return value;
}

// A weight matrix in either precision and any layout, and what it holds.
struct Matrix {
  Matrix(std::mt19937& rng, int64_t n, int64_t k, bool bfloat16, WeightLayout layout = WeightLayout::kRows)
      : values(Random(rng, n * k)), view{nullptr, bfloat16, n, k, layout} {
    const bool panels = layout != WeightLayout::kRows;
    if (bfloat16) {
      for (float& value : values) {
        uint32_t whole;
        std::memcpy(&whole, &value, 4);
        bits.push_back(static_cast<uint16_t>(whole >> 16));
        value = Widened(bits.back());
      }
      view.data = bits.data();
      if (panels) PackPanels(bits.data(), layout, true, n, k);
    } else {
      stored = values;
      view.data = stored.data();
      if (panels) PackPanels(stored.data(), layout, false, n, k);
    }
  }
  std::vector<float> values;  // [n, k]
  std::vector<float> stored;  // what the view shows, of either precision
  std::vector<uint16_t> bits;
  WeightView view;
};

// The precisions and layouts that a matrix [n, k] can have: bfloat16, layout.
inline std::vector<std::pair<bool, WeightLayout>> LayoutsOf(int64_t n, int64_t k) {
  std::vector<std::pair<bool, WeightLayout>> layouts = {{false, WeightLayout::kRows}, {true, WeightLayout::kRows}};
  if (n % kPanelRows != 0) return layouts;
  layouts.insert(layouts.end(), {{false, WeightLayout::kPanels}, {true, WeightLayout::kPanels}});
  if (k % 2 == 0) layouts.emplace_back(true, WeightLayout::kPairs);
  return layouts;
}

// On every instruction set that the code was compiled for and this machine has.
class OnInstructionSet : public testing::TestWithParam<int64_t> {
 protected:
  void SetUp() override { Choose(GetParam()); }
  void TearDown() override { Choose(0); }

 private:
  static void Choose(int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().DeInit();
  }
};

}  // namespace c3po::cpu

#endif  // C3PO_TESTS_SERVER_COMPUTE_CPU_INSTRUCTION_SETS_H_
