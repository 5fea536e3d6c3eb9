#ifndef C3PO_SERVER_PIPELINE_RETRIEVAL_H_
#define C3PO_SERVER_PIPELINE_RETRIEVAL_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/search/reference_catalog.h"
#include "index/types/optimization_options.h"
#include "server/pipeline/neighborhood.h"

namespace c3po {

// What a request found near it, and what the gate compares. Distances are Euclidean between embeddings, or states where
// `neighbor_source` says so, in [0, 2]: both distances are always of the same.
struct Retrieval {
  Neighborhood neighborhood;
  std::optional<double> nearest_distance;  // of the nearest reference; no value: there is none
  std::optional<double>
      max_neighbor_distance;  // that it may be away; no value: the gate does not look, or there is none
  std::string warning;        // that no reference is usable or matches, or fewer than were asked for are balanced
  int64_t generation = 0;     // of the catalog's state that this is of, at least
};

// Finds the neighbors of a unit-length embedding or state that the method of `settings` reads, and asks the catalog how
// far its own references are from each other, where the gate has no distance of its own. Nothing is found where
// settings.collection_may_be_missing and it is, nor where references exist and none is usable. All is of one state of
// the catalog, unless changes follow each other faster than it can be read. Thread-safe. NotFound: see
// ReferenceCatalog::Search.
absl::StatusOr<Retrieval> Retrieve(const ReferenceCatalog& catalog, const OptimizationSettings& settings,
                                   absl::Span<const float> embedding);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_RETRIEVAL_H_
