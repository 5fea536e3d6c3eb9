#include "index/search/distance.h"

#include <cstring>

namespace c3po {
namespace {

// Eight floats that add and multiply lane by lane (a GCC and Clang extension): without -ffast-math the compiler may not
// reorder a plain loop's sum, and so would not vectorize it. Two halves where the processor has no such registers.
typedef float Lanes __attribute__((vector_size(32)));
constexpr size_t kLanes = 8;
constexpr size_t kSums = 4;

// Compiled for every kind of processor, the same operations in the same order, none fused: the same bits.
inline __attribute__((always_inline)) float Sum(const float* a, const float* b, size_t size) {
  Lanes sums[kSums] = {};
  size_t i = 0;
  for (; i + kSums * kLanes <= size; i += kSums * kLanes) {
#pragma GCC unroll 4
    for (size_t j = 0; j < kSums; ++j) {
      Lanes x, y;
      std::memcpy(&x, a + i + j * kLanes, sizeof(x));
      std::memcpy(&y, b + i + j * kLanes, sizeof(y));
      const Lanes difference = x - y;
      sums[j] += difference * difference;
    }
  }
  const Lanes eight = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = ((eight[0] + eight[1]) + (eight[2] + eight[3])) + ((eight[4] + eight[5]) + (eight[6] + eight[7]));
  for (; i < size; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

float SumAnywhere(const float* a, const float* b, size_t size) { return Sum(a, b, size); }

#if defined(__x86_64__)
__attribute__((target("avx2"))) float SumAvx2(const float* a, const float* b, size_t size) { return Sum(a, b, size); }

const auto kSum = __builtin_cpu_supports("avx2") ? SumAvx2 : SumAnywhere;
#else
const auto kSum = SumAnywhere;
#endif

}  // namespace

float SquaredDistance(const float* a, const float* b, size_t size) { return kSum(a, b, size); }

}  // namespace c3po
