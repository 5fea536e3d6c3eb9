#include "index/search/neighbor_index.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::StatusOr<std::vector<LabeledDistance>> NeighborIndex::SearchWithin(absl::Span<const float> query, float epsilon,
                                                                         int k_max) const {
  if (!(epsilon >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("epsilon: ", NumberText(epsilon), ", must be a distance of at least 0"));
  }
  C3PO_RETURN_IF_ERROR(CheckNeighborCount("k_max", k_max));
  C3PO_ASSIGN_OR_RETURN(std::vector<LabeledDistance> found, Search(query, k_max));
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
