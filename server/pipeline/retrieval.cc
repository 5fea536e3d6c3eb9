#include "server/pipeline/retrieval.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/search/own_distances.h"

namespace c3po {
namespace {

// The settings by which references are looked for. Only gradient descent holds neighbors out. A prior was fitted to all
// references and asks for the nearest one only: whether the request is of their kind.
OptimizationSettings Narrowed(OptimizationSettings settings) {
  if (settings.method != Method::kNeighborhoodGradientDescent) settings.validation_neighbors = 0;
  if (settings.method != Method::kCollectionPrior) return settings;
  settings.k = 1;
  settings.epsilon.reset();
  settings.balance = false;
  settings.references = ReferenceSelection::kAll;
  settings.filter = MetadataFilter();
  return settings;
}

absl::StatusOr<std::optional<double>> MaxNeighborDistance(const ReferenceCatalog& catalog,
                                                          const OptimizationSettings& settings) {
  const GateOptions& gate = settings.gate;
  if (!gate.enabled || gate.max_neighbor_distance) return gate.enabled ? gate.max_neighbor_distance : std::nullopt;
  C3PO_ASSIGN_OR_RETURN(
      const std::optional<double> own,
      catalog.OwnDistanceQuantile(settings.collection, settings.successful_only(), gate.neighbor_distance_quantile,
                                  StateLayerOf(settings, catalog.moe_layers())));
  return std::max<double>(own.value_or(0), OwnDistances::kSameEmbedding);
}

constexpr int kReadsMax = 4;

absl::StatusOr<Retrieval> RetrieveOnce(const ReferenceCatalog& catalog, const OptimizationSettings& settings,
                                       const OptimizationSettings& narrowed, absl::Span<const float> embedding) {
  Retrieval retrieval;
  retrieval.generation = catalog.generation();
  absl::StatusOr<Neighborhood> found = FindNeighborhood(catalog, narrowed, embedding);
  const bool foreign = absl::IsFailedPrecondition(found.status());  // All of another model: the request does without.
  if (foreign) retrieval.warning = std::string(found.status().message());
  const bool missing = absl::IsNotFound(found.status()) && settings.collection_may_be_missing;
  if (foreign || missing) return retrieval;
  C3PO_RETURN_IF_ERROR(found.status());
  retrieval.neighborhood = *std::move(found);
  retrieval.warning = retrieval.neighborhood.warning;
  if (retrieval.neighborhood.fitted.empty()) {
    if (!narrowed.filter.empty() && retrieval.warning.empty()) {
      retrieval.warning = absl::StrCat("filter: no reference of collection \"", settings.collection,
                                       "\" that may be a neighbor matches");
    }
    return retrieval;
  }
  retrieval.nearest_distance = retrieval.neighborhood.fitted.front().distance;
  C3PO_ASSIGN_OR_RETURN(retrieval.max_neighbor_distance, MaxNeighborDistance(catalog, narrowed));
  return retrieval;
}

}  // namespace

// The catalog's generation rises with every state that it shows: where it is the same before and after, all that was
// read between is of this state.
absl::StatusOr<Retrieval> Retrieve(const ReferenceCatalog& catalog, const OptimizationSettings& settings,
                                   absl::Span<const float> embedding) {
  const OptimizationSettings narrowed = Narrowed(settings);
  for (int read = 1;; ++read) {
    absl::StatusOr<Retrieval> retrieval = RetrieveOnce(catalog, settings, narrowed, embedding);
    const bool whole = retrieval.ok() && catalog.generation() == retrieval->generation;
    if (whole || !retrieval.ok() || read == kReadsMax) return retrieval;
  }
}

}  // namespace c3po
