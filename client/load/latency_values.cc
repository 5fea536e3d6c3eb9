#include "client/load/latency_values.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace c3po {
namespace {

// `sorted` is not empty.
double OfRank(const std::vector<double>& sorted, double q) {
  const double rank = std::ceil(q * static_cast<double>(sorted.size()) - 1e-9);  // 0.9 * 10 is a little more than 9.
  const size_t index = rank < 1 ? 0 : static_cast<size_t>(rank) - 1;
  return sorted[std::min(index, sorted.size() - 1)];
}

}  // namespace

double LatencyValues::Percentile(double q) const {
  if (values_.empty()) return 0;
  std::vector<double> sorted = values_;
  std::sort(sorted.begin(), sorted.end());
  return OfRank(sorted, q);
}

LatencySummary LatencyValues::Summarize() const {
  LatencySummary summary;
  if (values_.empty()) return summary;
  std::vector<double> sorted = values_;
  std::sort(sorted.begin(), sorted.end());
  summary.count = sorted.size();
  summary.mean = std::accumulate(sorted.begin(), sorted.end(), 0.0) / static_cast<double>(sorted.size());
  summary.p50 = OfRank(sorted, 0.50);
  summary.p90 = OfRank(sorted, 0.90);
  summary.p95 = OfRank(sorted, 0.95);
  summary.p99 = OfRank(sorted, 0.99);
  summary.max = sorted.back();
  return summary;
}

}  // namespace c3po
