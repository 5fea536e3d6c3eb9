#include "server/pipeline/reference_gauges.h"

namespace c3po {
namespace {

constexpr int kRecallNeighbors = 10;
constexpr int kRecallQueries = 16;

}  // namespace

void ReportReferences(const ReferenceCatalog& catalog, Metrics* metrics) {
  if (metrics == nullptr) return;
  int64_t references = 0, usable = 0;
  for (const CatalogCollection& collection : catalog.Collections()) {
    references += collection.references;
    usable += collection.usable;
  }
  metrics->SetReferences(references);
  metrics->SetReferencesUsable(usable);
  metrics->SetIndexGeneration(catalog.generation());
}

void ReportRecall(const ReferenceCatalog& catalog, Metrics* metrics) {
  if (metrics != nullptr) metrics->SetRecallAtK(catalog.MeasureRecall(kRecallNeighbors, kRecallQueries));
}

}  // namespace c3po
