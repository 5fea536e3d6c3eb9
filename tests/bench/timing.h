#ifndef C3PO_TESTS_BENCH_TIMING_H_
#define C3PO_TESTS_BENCH_TIMING_H_

#include <algorithm>
#include <chrono>
#include <cmath>
#include <functional>
#include <vector>

namespace c3po {

inline double Seconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The upper one of an even number. `values` is not empty.
inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The smallest value that at least a share `q` of them does not exceed, q in (0, 1]. `values` is not empty.
inline double Quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(std::ceil(q * static_cast<double>(values.size()))) - 1];
}

}  // namespace c3po

#endif  // C3PO_TESTS_BENCH_TIMING_H_
