#include "client/eval/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

namespace c3po {

Estimate BootstrapMean(absl::Span<const OutcomeCounts> strata, const BootstrapOptions& options) {
  int64_t items = 0, sum = 0;
  for (const OutcomeCounts& stratum : strata) {
    items += stratum.items;
    sum += stratum.plus - stratum.minus;
  }
  if (items == 0) return {};
  std::vector<double> means(options.resamples, 0.0);
  std::mt19937_64 random(options.seed);
  for (const OutcomeCounts& stratum : strata) {
    if (stratum.items == 0) continue;
    const int64_t not_plus = stratum.items - stratum.plus;
    const double plus_rate = static_cast<double>(stratum.plus) / stratum.items;
    const double minus_rate = not_plus == 0 ? 0.0 : static_cast<double>(stratum.minus) / not_plus;
    // Made once: its set-up costs more than a draw.
    std::binomial_distribution<int64_t> draw_plus(stratum.items, plus_rate);
    for (double& mean : means) {
      const int64_t plus = draw_plus(random);
      int64_t minus = 0;
      if (stratum.minus > 0 && plus < stratum.items) {
        minus = std::binomial_distribution<int64_t>(stratum.items - plus, minus_rate)(random);
      }
      mean += static_cast<double>(plus - minus);
    }
  }
  std::sort(means.begin(), means.end());
  const double tail = (1 - options.confidence) / 2;
  const double scale = 1.0 / static_cast<double>(items);
  return {static_cast<double>(sum) * scale, Quantile(means, tail) * scale, Quantile(means, 1 - tail) * scale};
}

McNemarResult McNemarTest(int64_t b, int64_t c) {
  McNemarResult result;
  const int64_t discordant = b + c;
  if (discordant < kMcNemarExactBelow) {
    double combinations = 1, sum = 0;  // C(n, i) of n < 25 is exact in a double.
    for (int64_t i = 0; i <= std::min(b, c); ++i) {
      sum += combinations;
      combinations = combinations * static_cast<double>(discordant - i) / static_cast<double>(i + 1);
    }
    result.p_value = std::min(1.0, 2 * std::ldexp(sum, -static_cast<int>(discordant)));
    return result;
  }
  const double distance = std::max<int64_t>(0, std::abs(b - c) - 1);
  result.exact = false;
  result.statistic = distance * distance / static_cast<double>(discordant);
  result.p_value = std::erfc(std::sqrt(result.statistic / 2));
  return result;
}

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const double position = q * static_cast<double>(values.size() - 1);
  const size_t lower = static_cast<size_t>(position);
  std::nth_element(values.begin(), values.begin() + lower, values.end());
  const double below = values[lower];
  if (lower + 1 == values.size()) return below;
  const double above = *std::min_element(values.begin() + lower + 1, values.end());
  return below + (position - static_cast<double>(lower)) * (above - below);
}

double Mean(absl::Span<const double> values) {
  if (values.empty()) return 0;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace c3po
