#ifndef C3PO_TESTS_HOST_CUDA_EVERY_ORDER_H_
#define C3PO_TESTS_HOST_CUDA_EVERY_ORDER_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tests/host_cuda/kernel_run.h"

namespace c3po::host_cuda {

// Calls `run()`, which returns a std::vector of numbers, under seeds 0 to `seeds` - 1, and returns the first result. A
// result that differs from it by a bit fails the test, and names the seed.
template <class Run>
auto ResultOfEveryOrder(const Run& run, int seeds = 8) {
  SetSeed(0);
  const auto first = run();
  using Number = typename std::decay_t<decltype(first)>::value_type;
  static_assert(std::is_trivially_copyable_v<Number>);
  for (uint64_t seed = 1; seed < static_cast<uint64_t>(seeds); ++seed) {
    SetSeed(seed);
    const auto other = run();
    const bool same = other.size() == first.size() &&
                      (first.empty() || std::memcmp(other.data(), first.data(), first.size() * sizeof(Number)) == 0);
    EXPECT_TRUE(same) << "the result of seed " << seed << " is not that of seed 0";
    if (!same) break;
  }
  return first;
}

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_EVERY_ORDER_H_
