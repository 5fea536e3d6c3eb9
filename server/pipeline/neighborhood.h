#ifndef C3PO_SERVER_PIPELINE_NEIGHBORHOOD_H_
#define C3PO_SERVER_PIPELINE_NEIGHBORHOOD_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/search/reference_catalog.h"
#include "server/pipeline/optimization_settings.h"

namespace c3po {

// A reference that a request's pathway is fitted to, or judged by.
struct WeightedReference {
  std::shared_ptr<const ReferenceRecord> record;
  double distance = 0;       // Euclidean, from the query's embedding
  double kernel_weight = 0;  // > 0 unless it underflowed; sums to 1 over its list
};

struct Neighborhood {
  std::vector<WeightedReference> fitted;    // nearest first
  std::vector<WeightedReference> held_out;  // the next ones, nearest first
};

// The references near a unit-length embedding that `settings` ask for: k or all within epsilon, without the excluded
// ones, then validation_neighbors more; where there are fewer than both, either list has its share of them. Both lists
// are weighted by the kernel with the bandwidth asked for, else that of the farthest fitted one. Reads the catalog;
// thread-safe. Errors: see ReferenceCatalog::Search.
absl::StatusOr<Neighborhood> FindNeighborhood(const ReferenceCatalog& catalog, const OptimizationSettings& settings,
                                              absl::Span<const float> embedding);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_NEIGHBORHOOD_H_
