#ifndef C3PO_CLIENT_EVAL_STATISTICS_H_
#define C3PO_CLIENT_EVAL_STATISTICS_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"

namespace c3po {

// Statistics of evaluation runs. All functions are pure and thread-safe; the same arguments give the same figures.

// Items of one stratum (a task), each of which counts +1, 0 or -1.
//   accuracy:          +1 right, 0 wrong                       {items, right, 0}
//   paired difference: +1 improved, -1 worsened, 0 the same    {items, improved, worsened}
struct OutcomeCounts {
  int64_t items = 0;
  int64_t plus = 0, minus = 0;  // plus + minus <= items, none negative
};

struct Estimate {
  double value = 0;
  double low = 0, high = 0;  // of the interval; low <= high
};

struct BootstrapOptions {
  int resamples = 10000;     // >= 1
  double confidence = 0.95;  // in (0, 1)
  uint64_t seed = 2504'07964;
};

// The mean over all items of all strata, in [-1, 1], with its percentile bootstrap interval (Efron and Tibshirani, An
// Introduction to the Bootstrap, 1993, section 13.3). Items are drawn with replacement within each stratum, so every
// resample has the stratum sizes of the data. With n items of which p are +1 and m are -1 the number of +1 in a
// resample is Binomial(n, p/n) and, given a of them, that of -1 is Binomial(n - a, m/(n - p)): the resampled sum has
// exactly the distribution of n single draws, at a cost that does not grow with n. Random numbers: std::mt19937_64.
// Where all items of a stratum agree the bootstrap sees no spread there, and the interval is too narrow for a small n.
// No items: zeros.
Estimate BootstrapMean(absl::Span<const OutcomeCounts> strata, const BootstrapOptions& options = {});

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
