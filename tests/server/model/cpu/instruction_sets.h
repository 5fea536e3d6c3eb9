#ifndef C3PO_TESTS_SERVER_MODEL_CPU_INSTRUCTION_SETS_H_
#define C3PO_TESTS_SERVER_MODEL_CPU_INSTRUCTION_SETS_H_

#include "server/model/cpu/compiled_targets.h"
// After it.
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "server/model/cpu/matrix_products.h"
#include "server/model/cpu/panels.h"

namespace c3po::cpu {

inline std::vector<float> Random(std::mt19937& rng, int64_t size) {
  std::vector<float> values(size);
  for (float& v : values) v = std::normal_distribution<float>()(rng);
  return values;
}

// A weight matrix in either precision and layout, and what it holds.
struct Matrix {
  Matrix(std::mt19937& rng, int64_t n, int64_t k, bool bfloat16, bool panels = false)
      : values(Random(rng, n * k)), view{nullptr, bfloat16, n, k, panels} {
    if (bfloat16) {
      for (float& value : values) {
        uint32_t whole;
        std::memcpy(&whole, &value, 4);
        bits.push_back(static_cast<uint16_t>(whole >> 16));
        whole = uint32_t{bits.back()} << 16;
        std::memcpy(&value, &whole, 4);
      }
      view.data = bits.data();
      if (panels) PackPanels(bits.data(), true, n, k);
    } else {
      stored = values;
      view.data = stored.data();
      if (panels) PackPanels(stored.data(), false, n, k);
    }
  }
  std::vector<float> values;  // [n, k]
  std::vector<float> stored;  // what the view shows, of either precision
  std::vector<uint16_t> bits;
  WeightView view;
};

// The layouts that a matrix of n rows can have: bfloat16, panels.
inline std::vector<std::pair<bool, bool>> LayoutsOf(int64_t n) {
  std::vector<std::pair<bool, bool>> layouts = {{false, false}, {true, false}};
  if (n % kPanelRows == 0) layouts.insert(layouts.end(), {{false, true}, {true, true}});
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

#endif  // C3PO_TESTS_SERVER_MODEL_CPU_INSTRUCTION_SETS_H_
