#ifndef C3PO_TESTS_SERVER_METRICS_EXPOSITION_PARSER_H_
#define C3PO_TESTS_SERVER_METRICS_EXPOSITION_PARSER_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

struct ExpositionSample {
  std::string name;
  std::map<std::string, std::string> labels;
  double value = 0;
};

struct ExpositionFamily {
  std::string type;  // "counter", "gauge" or "histogram"
  std::string help;
  std::vector<ExpositionSample> samples;
};

using Exposition = std::map<std::string, ExpositionFamily>;

// A strict reader of Prometheus text format 0.0.4, stricter than a scraper: every family has HELP, then TYPE, then its
// samples and nothing of another family between them; no family and no series twice; counters are not negative;
// histogram buckets are cumulative in ascending order of `le`, end with +Inf, and +Inf equals the count.
// InvalidArgument names the line.
absl::StatusOr<Exposition> ParseExposition(absl::string_view text);

size_t SeriesCount(const Exposition& exposition);

// The one sample of that name with those labels. NotFound otherwise.
absl::StatusOr<double> SampleValue(const Exposition& exposition, absl::string_view name,
                                   const std::map<std::string, std::string>& labels = {});

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_METRICS_EXPOSITION_PARSER_H_
