#include "index/search/exact_index.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/search/distance.h"
#include "index/search/nearest_list.h"

namespace c3po {

absl::Status ExactIndex::Add(int64_t label, absl::Span<const float> vector) {
  C3PO_RETURN_IF_ERROR(CheckVector("vector", vector, dimension_));
  WriterLock lock(mutex_);
  if (!row_of_label_.emplace(label, labels_.size()).second) {
    return absl::AlreadyExistsError(absl::StrCat("label ", label, " is in the index"));
  }
  labels_.push_back(label);
  rows_.insert(rows_.end(), vector.begin(), vector.end());
  return absl::OkStatus();
}

absl::Status ExactIndex::Remove(int64_t label) {
  WriterLock lock(mutex_);
  const auto found = row_of_label_.find(label);
  if (found == row_of_label_.end()) {
    return absl::NotFoundError(absl::StrCat("label ", label, " is not in the index"));
  }
  // The last row takes the freed place.
  const size_t row = found->second;
  const size_t last = labels_.size() - 1;
  row_of_label_.erase(found);
  if (row != last) {
    std::copy_n(rows_.begin() + last * dimension_, dimension_, rows_.begin() + row * dimension_);
    labels_[row] = labels_[last];
    row_of_label_[labels_[row]] = row;
  }
  labels_.pop_back();
  rows_.resize(last * dimension_);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LabeledDistance>> ExactIndex::Search(absl::Span<const float> query, int k) const {
  C3PO_RETURN_IF_ERROR(CheckNeighborCount("k", k));
  C3PO_RETURN_IF_ERROR(CheckVector("query", query, dimension_));
  ReaderLock lock(mutex_);
  NearestList nearest(std::min(labels_.size(), static_cast<size_t>(k)));
  for (size_t row = 0; row < labels_.size(); ++row) {
    nearest.Offer(SquaredDistance(query.data(), rows_.data() + row * dimension_, query.size()), labels_[row]);
  }
  return nearest.Take();
}

size_t ExactIndex::size() const {
  ReaderLock lock(mutex_);
  return labels_.size();
}

}  // namespace c3po
