#ifndef C3PO_CLIENT_LOAD_LATENCY_VALUES_H_
#define C3PO_CLIENT_LOAD_LATENCY_VALUES_H_

#include <cstddef>
#include <vector>

namespace c3po {

// Seconds, of `count` values; zeros where there are none.
struct LatencySummary {
  size_t count = 0;
  double mean = 0;
  double p50 = 0, p90 = 0, p95 = 0, p99 = 0;
  double max = 0;
};

// Every value is kept (8 bytes each), so percentiles are exact: the q-percentile is the value of rank ceil(q n), the
// least that at least q n values do not exceed ("nearest rank"). Not thread-safe.
class LatencyValues {
 public:
  void Add(double seconds) { values_.push_back(seconds); }
  size_t count() const { return values_.size(); }
  // q in (0, 1]; 0 for no values.
  double Percentile(double q) const;
  LatencySummary Summarize() const;

 private:
  std::vector<double> values_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_LOAD_LATENCY_VALUES_H_
