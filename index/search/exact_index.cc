#include "index/search/exact_index.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/search/distance.h"
#include "index/search/nearest_list.h"

namespace c3po {
namespace {

constexpr size_t kBlockBytes = 64 * 1024;  // Of rows: a part of a core's second-level cache.

}  // namespace

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

std::vector<size_t> ExactIndex::RowsOf(const LabelFilter& filter) const {
  std::vector<size_t> rows;
  for (const int64_t label : filter.labels()) {
    const auto found = row_of_label_.find(label);
    if (found != row_of_label_.end()) rows.push_back(found->second);
  }
  std::sort(rows.begin(), rows.end());
  return rows;
}

// A block of rows is compared with every query while it is in the processor's cache. Each query meets the rows in their
// order, as it does alone. Under a filter the rows are those that it admits.
absl::StatusOr<std::vector<std::vector<LabeledDistance>>> ExactIndex::FindNearest(absl::Span<const float> queries,
                                                                                  int k,
                                                                                  const LabelFilter* filter) const {
  const auto dimension = static_cast<size_t>(dimension_);
  const size_t count = queries.size() / dimension;
  const size_t rows_at_once = std::max<size_t>(1, kBlockBytes / (dimension * sizeof(float)));
  ReaderLock lock(mutex_);
  const std::vector<size_t> admitted = filter != nullptr ? RowsOf(*filter) : std::vector<size_t>();
  const size_t rows = filter != nullptr ? admitted.size() : labels_.size();
  std::vector<NearestList> nearest;
  nearest.reserve(count);
  for (size_t i = 0; i < count; ++i) nearest.emplace_back(std::min(rows, static_cast<size_t>(k)));
  for (size_t first = 0; first < rows; first += rows_at_once) {
    const size_t end = std::min(rows, first + rows_at_once);
    for (size_t i = 0; i < count; ++i) {
      const float* query = queries.data() + i * dimension;
      for (size_t place = first; place < end; ++place) {
        const size_t row = filter != nullptr ? admitted[place] : place;
        nearest[i].Offer(SquaredDistance(query, rows_.data() + row * dimension, dimension), labels_[row]);
      }
    }
  }
  std::vector<std::vector<LabeledDistance>> found;
  found.reserve(count);
  for (NearestList& each : nearest) found.push_back(each.Take());
  return found;
}

bool ExactIndex::Holds(int64_t label) const {
  ReaderLock lock(mutex_);
  return row_of_label_.count(label) > 0;
}

std::vector<float> ExactIndex::Vector(int64_t label) const {
  ReaderLock lock(mutex_);
  const auto found = row_of_label_.find(label);
  if (found == row_of_label_.end()) return {};
  const auto row = rows_.begin() + static_cast<std::ptrdiff_t>(found->second * static_cast<size_t>(dimension_));
  return {row, row + dimension_};
}

int64_t ExactIndex::MemoryBytes() const {
  ReaderLock lock(mutex_);
  return static_cast<int64_t>(rows_.size() * sizeof(float));
}

size_t ExactIndex::size() const {
  ReaderLock lock(mutex_);
  return labels_.size();
}

}  // namespace c3po
