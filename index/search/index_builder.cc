#include "index/search/index_builder.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/search/cuda/device_index.h"
#include "index/search/exact_index.h"

namespace c3po {
namespace {

absl::StatusOr<std::unique_ptr<HnswIndex>> BuildGraph(const IndexOptions& options,
                                                      absl::Span<const LabeledVector> vectors) {
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<HnswIndex> graph, HnswIndex::Create(options.dimension, options.hnsw));
  for (const LabeledVector& each : vectors) C3PO_RETURN_IF_ERROR(graph->Add(each.label, each.vector));
  return graph;
}

}  // namespace

absl::Status IndexBuilder::Check(const IndexOptions& options) {
  return HnswIndex::Create(options.dimension, options.hnsw).status();
}

bool IndexBuilder::DeviceTakes(int64_t size) const {
  return options_.device != nullptr && !options_.device->failed() && size >= options_.device_min &&
         DeviceIndex::Fits(*options_.device, options_.dimension);
}

bool IndexBuilder::Outgrown(const NeighborIndex& index, int64_t size) const {
  if (index.approximate()) return false;
  if (index.on_device()) return size > options_.device_exact_max;
  return size > options_.exact_max || DeviceTakes(size);
}

std::shared_ptr<NeighborIndex> IndexBuilder::Placed(std::unique_ptr<HnswIndex> graph) const {
  if (DeviceTakes(static_cast<int64_t>(graph->size()))) {
    auto placed = DeviceIndex::Create(options_.device, graph, options_.hnsw);
    if (placed.ok()) return *std::move(placed);
  }
  return graph;
}

std::shared_ptr<NeighborIndex> IndexBuilder::BuildOnDevice(absl::Span<const LabeledVector> vectors) const {
  const auto count = static_cast<int64_t>(vectors.size());
  if (!DeviceTakes(count) || count > options_.device_exact_max) return nullptr;
  auto exact = std::make_unique<ExactIndex>(options_.dimension);
  for (const LabeledVector& each : vectors) exact->Add(each.label, each.vector).IgnoreError();  // As in Build.
  auto placed = DeviceIndex::Create(options_.device, exact, vectors);
  if (!placed.ok()) return nullptr;
  return *std::move(placed);
}

std::shared_ptr<NeighborIndex> IndexBuilder::Build(absl::Span<const LabeledVector> vectors) const {
  if (std::shared_ptr<NeighborIndex> on_device = BuildOnDevice(vectors)) return on_device;
  if (static_cast<int64_t>(vectors.size()) > options_.exact_max) {
    absl::StatusOr<std::unique_ptr<HnswIndex>> graph = BuildGraph(options_, vectors);
    if (graph.ok()) return Placed(*std::move(graph));
  }
  auto exact = std::make_shared<ExactIndex>(options_.dimension);
  // Adding cannot fail: the vectors are of this dimension and finite, and their labels differ.
  for (const LabeledVector& each : vectors) exact->Add(each.label, each.vector).IgnoreError();
  return exact;
}

absl::StatusOr<std::shared_ptr<NeighborIndex>> IndexBuilder::Load(const std::string& path, int64_t generation,
                                                                  absl::Span<const LabeledVector> vectors) const {
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<HnswIndex> graph,
                        HnswIndex::Load(path, options_.dimension, options_.hnsw, generation,
                                        HnswIndex::NodesMax(static_cast<int64_t>(vectors.size()))));
  // Equal generations of two different stores, or a store restored from a backup, are found out here.
  const auto holds = [&](const LabeledVector& each) { return graph->Holds(each.label, each.vector); };
  if (graph->size() != vectors.size() || !std::all_of(vectors.begin(), vectors.end(), holds)) {
    return absl::FailedPreconditionError(absl::StrCat("graph file ", path, ": holds other embeddings than the store"));
  }
  return Placed(std::move(graph));
}

}  // namespace c3po
