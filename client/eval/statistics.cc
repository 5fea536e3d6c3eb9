#include "client/eval/statistics.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace c3po {

namespace {

constexpr double kNormalQuantile = 1.959963984540054;  // of 0.975

// Of the items by the two methods, with Newcombe's continuity correction. 0 where a method is always right or never.
double Phi(double both, double first, double second, double neither) {
  const double product = (both + first) * (second + neither) * (both + second) * (first + neither);
  if (!(product > 0)) return 0;
  const double items = both + first + second + neither;
  const double determinant = both * neither - first * second;
  return (determinant > 0 ? std::max(0.0, determinant - items / 2) : determinant) / std::sqrt(product);
}

double Reach(double a, double b, double phi) { return std::sqrt(std::max(0.0, a * a - 2 * phi * a * b + b * b)); }

}  // namespace

Estimate Proportion(int64_t right, int64_t items) {
  if (items == 0) return {};
  const double n = static_cast<double>(items), z = kNormalQuantile;
  const double p = static_cast<double>(right) / n;
  const double center = p + z * z / (2 * n), scale = 1 + z * z / n;
  const double reach = z * std::sqrt(p * (1 - p) / n + z * z / (4 * n * n));
  // At the ends the formula gives 0 and 1 but for rounding.
  return {p, right == 0 ? 0 : std::min(p, (center - reach) / scale),
          right == items ? 1 : std::max(p, (center + reach) / scale)};
}

Estimate PairedDifference(const PairedOutcomes& outcomes) {
  if (outcomes.items == 0) return {};
  const int64_t both = outcomes.right - outcomes.improved;
  const Estimate method = Proportion(outcomes.right, outcomes.items);
  const Estimate baseline = Proportion(both + outcomes.worsened, outcomes.items);
  const double phi =
      Phi(static_cast<double>(both), static_cast<double>(outcomes.improved), static_cast<double>(outcomes.worsened),
          static_cast<double>(outcomes.items - outcomes.right - outcomes.worsened));
  const double difference =
      static_cast<double>(outcomes.improved - outcomes.worsened) / static_cast<double>(outcomes.items);
  return {difference,
          std::max(-1.0, difference - Reach(method.value - method.low, baseline.high - baseline.value, phi)),
          std::min(1.0, difference + Reach(method.high - method.value, baseline.value - baseline.low, phi))};
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
