#include "index/search/recall.h"

#include <algorithm>

#include "index/search/distance.h"
#include "index/search/nearest_list.h"

namespace c3po {
namespace {

// For each query the k nearest other members.
std::vector<std::vector<LabeledDistance>> NearestOthers(absl::Span<const LabeledVector> members,
                                                        absl::Span<const size_t> queries, int k) {
  std::vector<NearestList> nearest;
  nearest.reserve(queries.size());
  for (size_t i = 0; i < queries.size(); ++i) nearest.emplace_back(static_cast<size_t>(k));
  for (const LabeledVector& member : members) {
    for (size_t i = 0; i < queries.size(); ++i) {
      const LabeledVector& query = members[queries[i]];
      if (query.label == member.label) continue;
      nearest[i].Offer(SquaredDistance(query.vector.data(), member.vector.data(), member.vector.size()), member.label);
    }
  }
  std::vector<std::vector<LabeledDistance>> found;
  found.reserve(queries.size());
  for (NearestList& each : nearest) found.push_back(each.Take());
  return found;
}

}  // namespace

std::vector<size_t> SpreadQueries(size_t members, int count) {
  std::vector<size_t> queries;
  const size_t stride = members / static_cast<size_t>(count) + 1;
  for (size_t i = 0; i < members; i += stride) queries.push_back(i);
  return queries;
}

RecallCount CountRecall(absl::Span<const LabeledVector> members, absl::Span<const size_t> queries, int k,
                        absl::Span<const std::vector<LabeledDistance>> found) {
  RecallCount all;
  const std::vector<std::vector<LabeledDistance>> exact = NearestOthers(members, queries, k);
  for (size_t i = 0; i < queries.size(); ++i) {
    if (exact[i].empty()) continue;
    const auto near = [&](const LabeledDistance& each) {
      return each.label != members[queries[i]].label && each.distance <= exact[i].back().distance;
    };
    const auto count = static_cast<int64_t>(exact[i].size());
    all.Add({count, std::min<int64_t>(count, std::count_if(found[i].begin(), found[i].end(), near))});
  }
  return all;
}

}  // namespace c3po
