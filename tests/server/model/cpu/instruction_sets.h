#ifndef C3PO_TESTS_SERVER_MODEL_CPU_INSTRUCTION_SETS_H_
#define C3PO_TESTS_SERVER_MODEL_CPU_INSTRUCTION_SETS_H_

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "server/model/cpu/matrix_products.h"

namespace c3po::cpu {

inline std::vector<float> Random(std::mt19937& rng, int64_t size) {
  std::vector<float> values(size);
  for (float& v : values) v = std::normal_distribution<float>()(rng);
  return values;
}

// A weight matrix in either precision, and what it holds.
struct Matrix {
  Matrix(std::mt19937& rng, int64_t n, int64_t k, bool bfloat16)
      : values(Random(rng, n * k)), bits(n * k), view{nullptr, bfloat16, n, k} {
    if (!bfloat16) {
      view.data = values.data();
      return;
    }
    for (size_t i = 0; i < values.size(); ++i) {
      uint32_t whole;
      std::memcpy(&whole, &values[i], 4);
      bits[i] = static_cast<uint16_t>(whole >> 16);
      whole = uint32_t{bits[i]} << 16;
      std::memcpy(&values[i], &whole, 4);
    }
    view.data = bits.data();
  }
  std::vector<float> values;
  std::vector<uint16_t> bits;
  WeightView view;
};

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
