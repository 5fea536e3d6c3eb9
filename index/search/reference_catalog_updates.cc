// Where updates come from: this server's own changes, those of others, and the whole store. What becomes of them is
// told in reference_catalog_changes.cc.

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "index/base/status_macros.h"
#include "index/search/reference_catalog.h"

namespace c3po {
namespace {

bool SameRecord(const ReferenceRecord& a, const ReferenceRecord& b) {
  const ReferenceSample &of_a = a.sample, &of_b = b.sample;
  return a.collection == b.collection && a.successful == b.successful && a.model_digest == b.model_digest &&
         a.embedder_digest == b.embedder_digest && a.created_unix_seconds == b.created_unix_seconds &&
         of_a.prompt == of_b.prompt && of_a.answer == of_b.answer && of_a.choices == of_b.choices &&
         of_a.metadata == of_b.metadata && of_a.id == of_b.id && a.embedding == b.embedding &&
         a.pathway.layers == b.pathway.layers && a.pathway.experts == b.pathway.experts &&
         a.pathway.weights == b.pathway.weights;
}

}  // namespace

absl::StatusOr<std::vector<AddOutcome>> ReferenceCatalog::Insert(absl::Span<const ReferenceRecord> records) {
  C3PO_RETURN_IF_ERROR(feed_->CheckReachable());
  C3PO_ASSIGN_OR_RETURN(std::vector<AddOutcome> outcomes, store_->Add(records));
  C3PO_RETURN_IF_ERROR(feed_->CatchUpAfterChange());
  return outcomes;
}

absl::StatusOr<int64_t> ReferenceCatalog::Erase(absl::Span<const std::string> ids) {
  C3PO_RETURN_IF_ERROR(feed_->CheckReachable());
  C3PO_ASSIGN_OR_RETURN(const int64_t erased, store_->Delete(ids));
  C3PO_RETURN_IF_ERROR(feed_->CatchUpAfterChange());
  return erased;
}

absl::StatusOr<int64_t> ReferenceCatalog::EraseCollection(absl::string_view collection) {
  C3PO_RETURN_IF_ERROR(feed_->CheckReachable());
  C3PO_ASSIGN_OR_RETURN(const int64_t erased, store_->DeleteCollection(collection));
  C3PO_RETURN_IF_ERROR(feed_->CatchUpAfterChange());
  return erased;
}

absl::Status ReferenceCatalog::OnUpdate(const StoreUpdate& update) {
  MutexLock changing(change_mutex_);
  if (update.from_start) return ReadAll();
  std::vector<Candidate> candidates;
  for (const RecordPtr& record : update.records) {
    Candidate candidate = CandidateOf(record);
    if (!IsHeld(candidate)) candidates.push_back(std::move(candidate));  // ReadAll may have seen it.
  }
  Take(candidates, update.erased, update.generation);
  TakeStates(update.artifacts);
  return absl::OkStatus();
}

ReferenceCatalog::Candidate ReferenceCatalog::CandidateOf(RecordPtr record) const {
  Candidate candidate;
  candidate.why_unusable = WhyUnusable(*record);
  candidate.prompt_key = PromptIndex::KeyOf(record->collection, record->sample.prompt);
  candidate.record = std::move(record);
  if (candidate.why_unusable.empty()) return candidate;
  ReferenceRecord counted;  // No more is kept of it.
  counted.id = candidate.record->id;
  counted.collection = candidate.record->collection;
  candidate.record = std::make_shared<const ReferenceRecord>(std::move(counted));
  return candidate;
}

// Whether the catalog has just this already.
bool ReferenceCatalog::IsHeld(const Candidate& candidate) const {
  ReaderLock lock(mutex_);
  const auto found = entries_.find(candidate.record->id);
  if (found == entries_.end()) return false;
  const Entry& entry = found->second;
  if (entry.record != nullptr) return candidate.why_unusable.empty() && SameRecord(*entry.record, *candidate.record);
  return entry.why_unusable == candidate.why_unusable && entry.collection == candidate.record->collection &&
         entry.prompt_key == candidate.prompt_key;
}

// Reads the whole store, from one state, and takes in what is different: at the start all of it. Searches see the state
// before until the one after is there.
absl::Status ReferenceCatalog::ReadAll() {
  std::vector<Candidate> candidates;
  absl::flat_hash_set<std::string> present;
  int64_t generation = 0;
  const auto look = [&](ReferenceRecord record) {
    Candidate candidate = CandidateOf(std::make_shared<const ReferenceRecord>(std::move(record)));
    present.insert(candidate.record->id);
    if (!IsHeld(candidate)) candidates.push_back(std::move(candidate));
    return absl::OkStatus();
  };
  C3PO_RETURN_IF_ERROR(store_->ForEach(look, &generation));
  std::vector<std::string> erased;
  bool is_start = false;
  {
    WriterLock lock(mutex_);
    is_start = entries_.empty();
    for (const auto& [id, entry] : entries_) {
      if (!present.contains(id)) erased.push_back(id);
    }
    for (auto& [name, collection] : collections_) collection.states.clear();  // Read again when they are asked for.
  }
  if (!is_start) {
    Take(candidates, erased, generation);
    return absl::OkStatus();
  }
  const LabeledByCollection arrivals = AssignLabels(candidates);
  Publish(candidates, {}, arrivals, LoadOrBuildIndexes(arrivals, generation), generation);
  return absl::OkStatus();
}

ReferenceCatalog::IndexesByCollection ReferenceCatalog::LoadOrBuildIndexes(const LabeledByCollection& arrivals,
                                                                           int64_t generation) {
  IndexesByCollection indexes;
  for (const auto& [name, labeled] : arrivals) {
    for (ViewKind kind : kViewKinds) {
      indexes[name][kind] = LoadOrBuildIndex(name, kind, Entering(kind, labeled), generation);
    }
  }
  return indexes;
}

}  // namespace c3po
