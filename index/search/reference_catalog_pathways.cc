// Pathways on the device. Like vectors they are slow to bring and must appear with their batch, so arrivals are written
// first, as rows of no view, and shown at the moment in which the batch enters `usable`; those that leave are hidden
// with it. All of that only enqueues work on the device, in the order in which searches will see it.

#include <utility>

#include "index/search/reference_catalog.h"

namespace c3po {
namespace {

constexpr size_t kPathwaysMin = 256;  // Fewer are scanned sooner on the host.

}  // namespace

// Writes rows of the arrivals, hidden, into the pathways of their collections. A collection that has none yet, and is
// large enough now, gets them all. Pathways that have ended stay ended: to try again at each change would cost more
// than it brings. The holder of change_mutex_ calls it.
ReferenceCatalog::PathwaysByCollection ReferenceCatalog::PlacePathways(const LabeledByCollection& arrivals) const {
  PathwaysByCollection placed;
  if (options_.index_device == nullptr || options_.index_device->failed()) return placed;
  const auto row_of = [](const Labeled& each, uint32_t views) {
    return NewRow{each.label, each.record->pathway.weights, views};
  };
  for (const auto& [name, labeled] : arrivals) {
    std::shared_ptr<DevicePathways> pathways;
    std::vector<Labeled> present;
    {
      ReaderLock lock(mutex_);
      const auto found = collections_.find(name);
      const bool is_new = found == collections_.end();
      if (!is_new) pathways = found->second.pathways;
      const size_t known = is_new ? 0 : found->second.usable.size();
      if (pathways == nullptr && known + labeled.size() >= kPathwaysMin) {
        auto created =
            DevicePathways::Create(options_.index_device, options_.moe_layers, options_.experts, kViewKinds.size());
        if (created.ok()) pathways = *std::move(created);
        if (created.ok() && !is_new) present = MembersOf(found->second, kAll);
      }
    }
    if (pathways == nullptr || !pathways->usable()) continue;
    std::vector<NewRow> rows;
    for (const Labeled& each : present) rows.push_back(row_of(each, ViewsOf(*each.record)));
    for (const Labeled& each : labeled) rows.push_back(row_of(each, 0));
    pathways->Add(rows);
    placed[name] = std::move(pathways);
  }
  return placed;
}

void ReferenceCatalog::ShowPathways(const PathwaysByCollection& placed, const LabeledByCollection& arrivals) {
  for (const auto& [name, pathways] : placed) {
    CollectionNamed(name).pathways = pathways;
    std::vector<DevicePathways::Shown> shown;
    for (const Labeled& each : arrivals.at(name)) shown.push_back({each.label, ViewsOf(*each.record)});
    pathways->Show(shown);
  }
}

void ReferenceCatalog::HidePathways(const LabeledByCollection& departed) {
  for (const auto& [name, labeled] : departed) {
    const std::shared_ptr<DevicePathways>& pathways = CollectionNamed(name).pathways;
    if (pathways == nullptr) continue;
    std::vector<int64_t> labels;
    for (const Labeled& each : labeled) labels.push_back(each.label);
    pathways->Remove(labels);
  }
}

}  // namespace c3po
