#ifndef C3PO_SERVER_PIPELINE_NEIGHBORHOOD_H_
#define C3PO_SERVER_PIPELINE_NEIGHBORHOOD_H_

#include <memory>
#include <optional>
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
  std::string warning;                      // where `balance` found fewer than were asked for
};

// The layer whose states `neighbor_source` compares: entering the first critical one, or `moe_layers` for those after
// the last one; nothing for the encoder's embeddings.
std::optional<int> StateLayerOf(const OptimizationSettings& settings, int moe_layers);

// The references near a unit-length embedding, or near such a state where `neighbor_source` says so, that `settings`
// ask for: k or all within epsilon, without the excluded ones, then validation_neighbors more; where there are fewer
// than both, either list has its share of them. With `balance` both lists are taken from each answer in turn
// (TakeInTurn), among the references whose choices are those of the nearest one (ReferenceCatalog::SearchByAnswer).
// Both lists are weighted by the kernel with the bandwidth asked for, else that of the farthest fitted one. Reads the
// catalog; thread-safe. Errors: see ReferenceCatalog::Search.
absl::StatusOr<Neighborhood> FindNeighborhood(const ReferenceCatalog& catalog, const OptimizationSettings& settings,
                                              absl::Span<const float> embedding);

// Takes up to `count` references out of lists that are one answer's each, nearest first: of each list its first one,
// then of each its next one, and so on; of the last round, which may not be whole, the nearest. So the counts of two
// answers differ by one at most, as long as both have references left, and fewer than one of each answer are the
// nearest ones. What is taken leaves its list. Nearest first; of equal distances the lower id.
std::vector<WeightedReference> TakeInTurn(size_t count, std::vector<std::vector<WeightedReference>>& by_answer);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_NEIGHBORHOOD_H_
