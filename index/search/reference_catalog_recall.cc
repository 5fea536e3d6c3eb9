// Measuring recall: what the views' indexes find against a scan of their members (recall.h).

#include <utility>

#include "index/search/recall.h"
#include "index/search/reference_catalog.h"

namespace c3po {

// Members and what the index finds are of one moment. The scan comes after, without the lock: members are held.
RecallCount ReferenceCatalog::RecallOf(absl::string_view collection, ViewKind kind, int k, int queries) const {
  std::vector<Labeled> members;
  std::vector<size_t> chosen;
  std::vector<std::vector<LabeledDistance>> found;
  {
    ReaderLock lock(mutex_);
    const auto place = collections_.find(collection);
    if (place == collections_.end() || !place->second.views[kind].index->approximate()) return {};
    members = MembersOf(place->second, kind);
    chosen = SpreadQueries(members.size(), queries);
    std::vector<float> rows;
    for (const size_t member : chosen) {
      const std::vector<float>& embedding = members[member].record->embedding;
      rows.insert(rows.end(), embedding.begin(), embedding.end());
    }
    auto searched = SearchVisible(place->second, kind, rows, k + 1);
    if (!searched.ok()) return {};
    found = *std::move(searched);
  }
  return CountRecall(VectorsOf(members), chosen, k, found);
}

double ReferenceCatalog::MeasureRecall(int k, int queries) const {
  RecallCount all;
  for (const CatalogCollection& collection : Collections()) {
    for (ViewKind kind : kViewKinds) all.Add(RecallOf(collection.name, kind, k, queries));
  }
  return all.Share();
}

}  // namespace c3po
