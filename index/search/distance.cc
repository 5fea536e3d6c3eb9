#include "index/search/distance.h"

#include <cstring>

namespace c3po {
namespace {

// Four floats that add and multiply lane by lane (a GCC and Clang extension): without -ffast-math the compiler may not
// reorder a plain loop's sum, and so would not vectorize it.
typedef float Lanes __attribute__((vector_size(16)));
constexpr size_t kLanes = 4;
constexpr size_t kSums = 4;

}  // namespace

float SquaredDistance(const float* a, const float* b, size_t size) {
  Lanes sums[kSums] = {};
  size_t i = 0;
  for (; i + kSums * kLanes <= size; i += kSums * kLanes) {
    for (size_t j = 0; j < kSums; ++j) {
      Lanes x, y;
      std::memcpy(&x, a + i + j * kLanes, sizeof(x));
      std::memcpy(&y, b + i + j * kLanes, sizeof(y));
      const Lanes difference = x - y;
      sums[j] += difference * difference;
    }
  }
  const Lanes four = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float sum = (four[0] + four[1]) + (four[2] + four[3]);
  for (; i < size; ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

}  // namespace c3po
