#ifndef C3PO_TESTS_BENCH_CROSSOVER_H_
#define C3PO_TESTS_BENCH_CROSSOVER_H_

#include <cmath>
#include <cstddef>
#include <optional>
#include <vector>

namespace c3po {

// What a scan and a graph's search take at one size.
struct ScanAndBeam {
  double references = 0;
  double scan_seconds = 0;
  double beam_seconds = 0;
};

// How many references make both take equally long: between the last size at which the scan is the faster one and the
// next, by a straight line through the logarithms. `by_size`: ascending. Nothing: no such pair of sizes was measured.
inline std::optional<double> Crossover(const std::vector<ScanAndBeam>& by_size) {
  const auto excess = [](const ScanAndBeam& at) { return std::log(at.scan_seconds / at.beam_seconds); };
  for (size_t i = by_size.size(); i-- > 1;) {
    const double below = excess(by_size[i - 1]), above = excess(by_size[i]);
    if (below >= 0 || above < 0) continue;
    const double first = std::log(by_size[i - 1].references), last = std::log(by_size[i].references);
    return std::exp(first + (last - first) * -below / (above - below));
  }
  return std::nullopt;
}

}  // namespace c3po

#endif  // C3PO_TESTS_BENCH_CROSSOVER_H_
