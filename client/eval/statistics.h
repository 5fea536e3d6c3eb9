#ifndef C3PO_CLIENT_EVAL_STATISTICS_H_
#define C3PO_CLIENT_EVAL_STATISTICS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace c3po {

// Statistics of evaluation runs. All functions are pure and thread-safe; the same arguments give the same figures.

struct Estimate {
  double value = 0;
  double low = 0, high = 0;  // of the 95 % interval; low <= value <= high
};

// The proportion right / items with Wilson's score interval (Wilson, JASA 22, 1927): the proportions p that a score
// test would not reject,
//   (p^ + z^2/2n -+ z sqrt(p^ (1 - p^) / n + z^2/4n^2)) / (1 + z^2/n),  z = 1.96.
// It says what few items cannot tell where all of them agree: 27 of 27 is [87.5, 100] %. 0 <= right <= items. No items:
// zeros.
Estimate Proportion(int64_t right, int64_t items);

// Two methods on the same items.
struct PairedOutcomes {
  int64_t items = 0;
  int64_t right = 0;     // by the method
  int64_t improved = 0;  // of them wrong by the baseline
  int64_t worsened = 0;  // right by the baseline, wrong by the method; right + worsened <= items
};

// The difference of accuracy, (improved - worsened) / items in [-1, 1], with the interval made of Wilson's for either
// method and of their correlation phi over the items (Newcombe, Statistics in Medicine 17, 1998, 2635-2650, method 10):
//   d - sqrt(a^2 - 2 phi a b + b^2),  a = p1 - low1,  b = high2 - p2,  and alike upwards.
// Tasks are pooled as if their items were drawn from one population: a little wider than stratified intervals. No
// items: zeros.
Estimate PairedDifference(const PairedOutcomes& outcomes);

struct McNemarResult {
  double p_value = 1;    // two-sided, in [0, 1]
  double statistic = 0;  // chi-square with 1 degree of freedom; 0 when exact
  bool exact = true;
};

// Pairs of different outcome from which on the chi-square approximation is taken.
inline constexpr int64_t kMcNemarExactBelow = 25;

// Whether two methods are right equally often on the same items (McNemar, Psychometrika 12, 1947), from the numbers b
// and c of items that only one and only the other answers right; b, c >= 0.
//   b + c < 25:  exact sign test, p = min(1, 2 sum_{i <= min(b, c)} C(b + c, i) / 2^(b + c))
//   otherwise:   chi2 = max(0, |b - c| - 1)^2 / (b + c) (continuity correction of Edwards, Psychometrika 13, 1948),
//                p = P(chi-square_1 > chi2) = erfc(sqrt(chi2 / 2))
McNemarResult McNemarTest(int64_t b, int64_t c);

// The q-quantile, q in [0, 1], interpolated between order statistics at (n - 1) q (Hyndman and Fan 1996, type 7; the
// default of R and NumPy). 0 for no values.
double Quantile(std::vector<double> values, double q);

// 0 for no values.
double Mean(absl::Span<const double> values);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_STATISTICS_H_
