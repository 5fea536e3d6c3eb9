// Searches by answer: the same query among the references of each answer. Where the answers are few, each is a search
// of the view's index under a filter (label_filter.h), so that all of them together compare no more than one search of
// an exact index does. Of many answers, as of free ones, a search each would cost more than to look at every
// reference of the group once.

#include <algorithm>
#include <iterator>
#include <memory>
#include <utility>

#include "index/base/status_macros.h"
#include "index/search/distance.h"
#include "index/search/nearest_list.h"
#include "index/search/reference_catalog.h"

namespace c3po {

// Of those that are usable references of the collection: their labels, each with its answer.
ReferenceCatalog::AnswersOfLabels ReferenceCatalog::LabelsOf(absl::string_view collection,
                                                             absl::Span<const std::string> ids) const {
  AnswersOfLabels labels;
  for (const std::string& id : ids) {
    const auto found = entries_.find(id);
    if (found == entries_.end() || found->second.record == nullptr || found->second.collection != collection) continue;
    labels.emplace(found->second.label, found->second.record->sample.answer);
  }
  return labels;
}

namespace {

// What was found of one answer, nearest first.
struct Found {
  absl::string_view answer;
  std::vector<LabeledDistance> nearest;
};

std::shared_ptr<const LabelFilter> Both(const LabelFilter& a, const LabelFilter& b) {
  std::vector<int64_t> labels;
  std::copy_if(a.labels().begin(), a.labels().end(), std::back_inserter(labels),
               [&](int64_t label) { return b.Admits(label); });
  return std::make_shared<const LabelFilter>(std::move(labels));
}

// Leaves the `count` answers whose nearest references are nearest, by ascending answer.
void KeepNearest(size_t count, std::vector<Found>& found) {
  if (found.size() <= count) return;
  const auto is_nearer = [](const Found& a, const Found& b) {
    const LabeledDistance &x = a.nearest.front(), &y = b.nearest.front();
    return x.distance != y.distance ? x.distance < y.distance : x.label < y.label;
  };
  std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(count), found.end(), is_nearer);
  found.resize(count);
  std::sort(found.begin(), found.end(), [](const Found& a, const Found& b) { return a.answer < b.answer; });
}

}  // namespace

absl::StatusOr<std::vector<AnswerNeighbors>> ReferenceCatalog::SearchByAnswer(
    absl::string_view collection, absl::Span<const float> embedding, int k, bool successful_only,
    absl::Span<const std::string> excluded, std::optional<int> state_layer, const MetadataFilter* filter) const {
  C3PO_RETURN_IF_ERROR(CheckNeighborCount("k", k));
  C3PO_RETURN_IF_ERROR(CheckQuery(embedding, state_layer));
  ReaderLock lock(mutex_);
  C3PO_ASSIGN_OR_RETURN(const Collection* searched, FindSearchable(collection));
  const ViewKind kind = successful_only ? kSuccessful : kAll;
  const AnswersOfLabels left_out = LabelsOf(collection, excluded);
  const std::shared_ptr<const LabelFilter> matching = Matching(*searched, kind, filter);
  C3PO_ASSIGN_OR_RETURN(
      const std::vector<std::vector<LabeledDistance>> near,
      SearchVisible(*searched, kind, embedding, 1 + static_cast<int>(left_out.size()), state_layer, matching.get()));
  for (const LabeledDistance& each : near.front()) {
    if (left_out.contains(each.label)) continue;
    return NearestByAnswer(*searched, kind, each.label, embedding, k, left_out, state_layer, matching.get());
  }
  return std::vector<AnswerNeighbors>();
}

// SearchByAnswer where the nearest reference that is not left out is known.
absl::StatusOr<std::vector<AnswerNeighbors>> ReferenceCatalog::NearestByAnswer(
    const Collection& collection, ViewKind kind, int64_t nearest, absl::Span<const float> query, int k,
    const AnswersOfLabels& left_out, std::optional<int> state_layer, const LabelFilter* filter) const {
  const NeighborIndex* index = collection.views[kind].index.get();
  if (state_layer) {
    C3PO_ASSIGN_OR_RETURN(const States* states, StatesOf(collection, *state_layer));
    index = states->indexes[kind].get();
  }
  const auto answers = collection.answers.Of(*collection.usable.at(nearest), kind == kSuccessful);
  const auto is_left_out = [&](const LabeledDistance& each) { return left_out.contains(each.label); };
  absl::flat_hash_map<absl::string_view, int> left_out_of;
  for (const auto& [label, answer] : left_out) ++left_out_of[answer];
  std::vector<Found> all;
  for (const AnswerGroups::Answer& answer : answers) {
    const std::shared_ptr<const LabelFilter> admitted = filter ? Both(*answer.labels, *filter) : answer.labels;
    const auto count = left_out_of.find(answer.text);
    const int wanted = k + (count == left_out_of.end() ? 0 : count->second);
    Found found{answer.text, {}};
    if (state_layer || answers.size() <= kAnswersSearchedMax) {
      C3PO_ASSIGN_OR_RETURN(found.nearest, index->Search(query, wanted, admitted.get()));
    } else {
      NearestList list(std::min(static_cast<size_t>(wanted), admitted->labels().size()));
      for (const int64_t label : admitted->labels()) {
        const std::vector<float>& vector = collection.usable.at(label)->embedding;
        list.Offer(SquaredDistance(query.data(), vector.data(), vector.size()), label);
      }
      found.nearest = list.Take();
    }
    found.nearest.erase(std::remove_if(found.nearest.begin(), found.nearest.end(), is_left_out), found.nearest.end());
    if (found.nearest.size() > static_cast<size_t>(k)) found.nearest.resize(static_cast<size_t>(k));
    if (!found.nearest.empty()) all.push_back(std::move(found));
  }
  KeepNearest(static_cast<size_t>(k), all);
  std::vector<AnswerNeighbors> by_answer;
  for (const Found& found : all) by_answer.push_back({std::string(found.answer), Named(collection, found.nearest)});
  return by_answer;
}

}  // namespace c3po
