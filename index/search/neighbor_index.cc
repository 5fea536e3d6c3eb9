#include "index/search/neighbor_index.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::StatusOr<std::vector<LabeledDistance>> NeighborIndex::Search(absl::Span<const float> query, int k,
                                                                   const LabelFilter* filter) const {
  C3PO_RETURN_IF_ERROR(CheckNeighborCount("k", k));
  C3PO_RETURN_IF_ERROR(CheckVector("query", query, dimension()));
  C3PO_ASSIGN_OR_RETURN(std::vector<std::vector<LabeledDistance>> found, FindNearest(query, k, filter));
  return std::move(found.front());
}

absl::StatusOr<std::vector<std::vector<LabeledDistance>>> NeighborIndex::SearchMany(absl::Span<const float> queries,
                                                                                    int k,
                                                                                    const LabelFilter* filter) const {
  C3PO_RETURN_IF_ERROR(CheckNeighborCount("k", k));
  const auto size = static_cast<size_t>(dimension());
  if (queries.size() % size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("queries: ", queries.size(), " numbers, must be whole vectors of ", size));
  }
  for (size_t i = 0; i < queries.size(); ++i) {
    if (std::isfinite(queries[i])) continue;
    return absl::InvalidArgumentError(absl::StrCat("queries[", i / size, "][", i % size, "]: not finite"));
  }
  if (queries.empty()) return std::vector<std::vector<LabeledDistance>>();
  return FindNearest(queries, k, filter);
}

absl::StatusOr<std::vector<LabeledDistance>> NeighborIndex::SearchWithin(absl::Span<const float> query, float epsilon,
                                                                         int k_max, const LabelFilter* filter) const {
  if (!(epsilon >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("epsilon: ", NumberText(epsilon), ", must be a distance of at least 0"));
  }
  C3PO_RETURN_IF_ERROR(CheckNeighborCount("k_max", k_max));
  C3PO_ASSIGN_OR_RETURN(std::vector<LabeledDistance> found, Search(query, k_max, filter));
  while (!found.empty() && found.back().distance > epsilon) found.pop_back();
  return found;
}

absl::Status CheckVector(absl::string_view name, absl::Span<const float> vector, int dimension) {
  if (vector.size() != static_cast<size_t>(dimension)) {
    return absl::InvalidArgumentError(absl::StrCat(name, ": has ", vector.size(), " dimensions, not ", dimension));
  }
  for (size_t i = 0; i < vector.size(); ++i) {
    if (!std::isfinite(vector[i])) return absl::InvalidArgumentError(absl::StrCat(name, "[", i, "]: not finite"));
  }
  return absl::OkStatus();
}

absl::Status CheckNeighborCount(absl::string_view name, int k) {
  if (k >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, ": ", k, ", must be at least 1"));
}

}  // namespace c3po
