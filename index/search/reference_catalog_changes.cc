// How a change reaches the searches. Taking a vector into a graph is slow (up to a millisecond), and a search must see
// a batch whole or not at all. So what searches may return is one map per collection (`usable`), and an index may for a
// while hold labels that are not in it:
//   Insert: commit to the store; announce how many hidden labels come (exclusive, short); add them to the indexes
//   beside
//           running searches; enter all of them into the map (exclusive, short).
//   Erase:  commit to the store; take all of them out of the map (exclusive, short); remove them from the indexes
//   beside
//           running searches.
// Either ends by bringing the own distances of the views it touched up to date.
// A search asks an index for k plus the hidden ones and drops what is not in the map.

#include <algorithm>
#include <climits>
#include <filesystem>
#include <numeric>
#include <set>
#include <system_error>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"
#include "index/search/reference_catalog.h"

namespace c3po {
namespace {

// The label that an id wants: its first 60 bits, so that labels do not depend on the order in which references came,
// and equal distances are ordered by id. An id that somebody chose has its hash in place of its own digits.
int64_t FirstLabel(const std::string& id) {
  const bool made_of_sample = id.size() == 32 && id.find_first_not_of("0123456789abcdef") == std::string::npos;
  int64_t label = 0;
  if (made_of_sample) return absl::SimpleHexAtoi(id.substr(0, 15), &label) ? label : 0;
  Sha256 hash;
  hash.Update(id);
  return absl::SimpleHexAtoi(hash.HexDigest().substr(0, 15), &label) ? label : 0;
}

}  // namespace

absl::StatusOr<std::vector<AddOutcome>> ReferenceCatalog::Insert(absl::Span<const ReferenceRecord> records) {
  MutexLock changing(change_mutex_);
  C3PO_ASSIGN_OR_RETURN(std::vector<AddOutcome> outcomes, store_->Add(records));
  // Of several changes to one id in the batch, the last is what the store holds.
  absl::flat_hash_map<absl::string_view, size_t> last_change;
  for (size_t i = 0; i < records.size(); ++i) {
    if (outcomes[i] != AddOutcome::kDuplicate) last_change[records[i].id] = i;
  }
  std::vector<Candidate> candidates;
  for (size_t i = 0; i < records.size(); ++i) {
    const auto change = last_change.find(records[i].id);
    if (change == last_change.end() || change->second != i) continue;
    candidates.push_back({std::make_shared<const ReferenceRecord>(records[i]), WhyUnusable(records[i]),
                          PromptIndex::KeyOf(records[i].collection, records[i].sample.prompt)});
  }
  if (candidates.empty()) return outcomes;
  const LabeledByCollection arrivals = AssignLabels(candidates);
  ReserveHidden(arrivals);
  const IndexesByCollection replacements = FillIndexes(arrivals);
  Publish(candidates, arrivals, replacements, store_->generation());
  return outcomes;
}

absl::StatusOr<int64_t> ReferenceCatalog::Erase(absl::Span<const std::string> ids) {
  MutexLock changing(change_mutex_);
  C3PO_ASSIGN_OR_RETURN(const int64_t erased, store_->Delete(ids));
  Withdraw(ids, store_->generation());
  return erased;
}

absl::StatusOr<int64_t> ReferenceCatalog::EraseCollection(absl::string_view collection) {
  MutexLock changing(change_mutex_);
  C3PO_ASSIGN_OR_RETURN(const int64_t erased, store_->DeleteCollection(collection));
  std::vector<std::string> ids;
  {
    ReaderLock lock(mutex_);
    for (const auto& [id, entry] : entries_) {
      if (entry.collection == collection) ids.push_back(id);
    }
  }
  Withdraw(ids, store_->generation());
  if (!options_.graph_cache_folder.empty()) {
    std::error_code ignored;  // A file that stays is refused at the next start.
    for (ViewKind kind : kViewKinds) std::filesystem::remove(GraphPath(collection, kind), ignored);
  }
  return erased;
}

// Labels that no reference of the collection has, an outgoing one that is about to be replaced included.
ReferenceCatalog::LabeledByCollection ReferenceCatalog::AssignLabels(absl::Span<const Candidate> candidates) const {
  LabeledByCollection labeled;
  std::map<std::string, absl::flat_hash_set<int64_t>> taken;
  ReaderLock lock(mutex_);
  for (const Candidate& candidate : candidates) {
    if (!candidate.why_unusable.empty()) continue;
    const auto collection = collections_.find(candidate.record->collection);
    auto& taken_here = taken[candidate.record->collection];
    int64_t label = FirstLabel(candidate.record->id);
    while ((collection != collections_.end() && collection->second.usable.contains(label)) ||
           !taken_here.insert(label).second) {
      ++label;
    }
    labeled[candidate.record->collection].push_back({candidate.record, label});
  }
  return labeled;
}

ReferenceCatalog::Collection& ReferenceCatalog::CollectionNamed(const std::string& name) {
  Collection& collection = collections_[name];
  for (View& view : collection.views) {
    if (view.index == nullptr) view.index = BuildIndex({});
  }
  return collection;
}

// From here on searches expect the arrivals among what the indexes return. A collection made here has no references
// yet, and so does not exist for searches.
void ReferenceCatalog::ReserveHidden(const LabeledByCollection& arrivals) {
  WriterLock lock(mutex_);
  for (const auto& [name, labeled] : arrivals) {
    for (View& view : CollectionNamed(name).views) view.hidden = static_cast<int>(labeled.size());
  }
}

std::vector<ReferenceCatalog::Labeled> ReferenceCatalog::MembersOf(const Collection& collection, ViewKind kind) {
  std::vector<Labeled> members;
  for (const auto& [label, record] : collection.usable) {
    if (IsIn(kind, *record)) members.push_back({record, label});
  }
  // The order of a hash map differs from run to run; a graph depends on the order in which it was built.
  std::sort(members.begin(), members.end(), [](const Labeled& a, const Labeled& b) { return a.label < b.label; });
  return members;
}

std::vector<ReferenceCatalog::Labeled> ReferenceCatalog::SmallestLabels(const Collection& collection, ViewKind kind,
                                                                        size_t count) {
  std::vector<int64_t> labels;
  for (const auto& [label, record] : collection.usable) {
    if (IsIn(kind, *record)) labels.push_back(label);
  }
  if (labels.size() > count) {
    std::nth_element(labels.begin(), labels.begin() + static_cast<std::ptrdiff_t>(count), labels.end());
    labels.resize(count);
  }
  std::sort(labels.begin(), labels.end());
  std::vector<Labeled> members;
  for (const int64_t label : labels) members.push_back({collection.usable.at(label), label});
  return members;
}

// Adds the arrivals to the indexes of their views. What it returns are new indexes that replace those: of a view that
// has outgrown its index, or whose index failed.
ReferenceCatalog::IndexesByCollection ReferenceCatalog::FillIndexes(const LabeledByCollection& arrivals) {
  IndexesByCollection replacements;
  for (const auto& [name, labeled] : arrivals) {
    for (ViewKind kind : kViewKinds) {
      std::vector<Labeled> entering;
      std::copy_if(labeled.begin(), labeled.end(), std::back_inserter(entering),
                   [kind](const Labeled& each) { return IsIn(kind, *each.record); });
      replacements[name][kind] = FillIndex(name, kind, entering);
    }
  }
  return replacements;
}

// Null: the view's own index took the arrivals in.
ReferenceCatalog::IndexPtr ReferenceCatalog::FillIndex(const std::string& collection, ViewKind kind,
                                                       absl::Span<const Labeled> arrivals) const {
  View view;
  {
    ReaderLock lock(mutex_);
    view = collections_.find(collection)->second.views[kind];
  }
  if (!builder_.Outgrown(*view.index, view.references + static_cast<int64_t>(arrivals.size()))) {
    absl::Status status;
    for (size_t i = 0; status.ok() && i < arrivals.size(); ++i) {
      status = view.index->Add(arrivals[i].label, arrivals[i].record->embedding);
    }
    if (status.ok()) return nullptr;
  }
  std::vector<Labeled> members;
  {
    ReaderLock lock(mutex_);
    members = MembersOf(collections_.find(collection)->second, kind);
  }
  members.insert(members.end(), arrivals.begin(), arrivals.end());
  return BuildIndex(members);
}

// Makes the batch visible, and what it replaces invisible, at one moment.
void ReferenceCatalog::Publish(absl::Span<const Candidate> candidates, const LabeledByCollection& arrivals,
                               const IndexesByCollection& replacements, int64_t generation) {
  LabeledByCollection departed;
  const PathwaysByCollection pathways = PlacePathways(arrivals);
  {
    WriterLock lock(mutex_);
    for (const auto& [name, labeled] : arrivals) {
      for (View& view : CollectionNamed(name).views) view.hidden = 0;
    }
    for (const auto& [name, indexes] : replacements) {
      for (ViewKind kind : kViewKinds) {
        if (indexes[kind] != nullptr) CollectionNamed(name).views[kind].index = indexes[kind];
      }
    }
    for (const Candidate& candidate : candidates) {
      const ReferenceRecord& record = *candidate.record;
      Unpublish(record.id, departed);
      Collection& collection = CollectionNamed(record.collection);
      ++collection.references;
      entries_[record.id] = {record.collection, nullptr, 0, candidate.why_unusable, candidate.prompt_key};
      prompts_.Put(candidate.prompt_key, record.id);
      if (!candidate.why_unusable.empty()) ++collection.unusable[candidate.why_unusable];
    }
    for (const auto& [name, labeled] : arrivals) {
      Collection& collection = CollectionNamed(name);
      for (const Labeled& arrival : labeled) {
        collection.usable[arrival.label] = arrival.record;
        collection.answers.Add(arrival.label, *arrival.record);
        Entry& entry = entries_[arrival.record->id];
        entry.record = arrival.record;
        entry.label = arrival.label;
        for (ViewKind kind : kViewKinds) collection.views[kind].references += IsIn(kind, *arrival.record);
      }
    }
    ShowPathways(pathways, arrivals);
    HidePathways(departed);
    generation_ = generation;
  }
  RemoveFromIndexes(departed);
  RefreshDistances(arrivals, departed);
}

// Takes `id`, if it is there, out of what searches may return. A usable one stays hidden in the indexes.
void ReferenceCatalog::Unpublish(const std::string& id, LabeledByCollection& departed) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  const Entry& entry = found->second;
  Collection& collection = collections_.find(entry.collection)->second;
  --collection.references;
  if (entry.record == nullptr) {
    const auto reason = collection.unusable.find(entry.why_unusable);
    if (--reason->second == 0) collection.unusable.erase(reason);
  } else {
    collection.usable.erase(entry.label);
    collection.answers.Remove(entry.label, *entry.record);
    DropStates(collection, entry);
    for (ViewKind kind : kViewKinds) {
      if (!IsIn(kind, *entry.record)) continue;
      --collection.views[kind].references;
      ++collection.views[kind].hidden;
    }
    departed[entry.collection].push_back({entry.record, entry.label});
  }
  prompts_.Remove(entry.prompt_key, id);
  entries_.erase(found);
}

void ReferenceCatalog::Withdraw(absl::Span<const std::string> ids, int64_t generation) {
  LabeledByCollection departed;
  {
    WriterLock lock(mutex_);
    for (const std::string& id : ids) Unpublish(id, departed);
    HidePathways(departed);
    for (auto it = collections_.begin(); it != collections_.end();) {
      if (it->second.references > 0) {
        ++it;
        continue;
      }
      departed.erase(it->first);
      it = collections_.erase(it);
    }
    generation_ = generation;
  }
  RemoveFromIndexes(departed);
  RefreshDistances({}, departed);
}

// The end of an erasure: nothing hidden is left.
void ReferenceCatalog::RemoveFromIndexes(const LabeledByCollection& departed) {
  for (const auto& [name, labeled] : departed) {
    for (ViewKind kind : kViewKinds) {
      IndexPtr index;
      {
        ReaderLock lock(mutex_);
        index = collections_.find(name)->second.views[kind].index;
      }
      bool broken = false;
      for (const Labeled& each : labeled) {
        if (IsIn(kind, *each.record) && !index->Remove(each.label).ok()) broken = true;
      }
      if (broken || index->WantsRebuilding()) {
        std::vector<Labeled> members;
        {
          ReaderLock lock(mutex_);
          members = MembersOf(collections_.find(name)->second, kind);
        }
        index = BuildIndex(members);
      }
      WriterLock lock(mutex_);
      View& view = collections_.find(name)->second.views[kind];
      view.index = index;
      view.hidden = 0;
    }
  }
}

// The end of a change: every view that it touched knows its members' own distances again. Searches go on meanwhile and
// see those before the change.
void ReferenceCatalog::RefreshDistances(const LabeledByCollection& arrivals, const LabeledByCollection& departed) {
  std::set<std::string> names;
  for (const LabeledByCollection* change : {&arrivals, &departed}) {
    for (const auto& [name, labeled] : *change) names.insert(name);
  }
  for (const std::string& name : names) {
    const auto found = arrivals.find(name);
    for (ViewKind kind : kViewKinds) {
      std::vector<OwnDistances::Member> added;
      if (found != arrivals.end()) {
        for (const Labeled& each : found->second) {
          if (IsIn(kind, *each.record)) added.push_back({each.label, each.record});
        }
      }
      OwnDistances own = DistancesAfter(name, kind, added);
      WriterLock lock(mutex_);
      std::swap(collections_.find(name)->second.views[kind].own, own);
    }
  }
}

OwnDistances ReferenceCatalog::DistancesAfter(const std::string& name, ViewKind kind,
                                              absl::Span<const OwnDistances::Member> added) const {
  ReaderLock lock(mutex_);
  const Collection& collection = collections_.find(name)->second;
  std::vector<OwnDistances::Member> sample;
  for (const Labeled& each : SmallestLabels(collection, kind, OwnDistances::kSampleMax)) {
    sample.push_back({each.label, each.record});
  }
  const auto is_member = [&](const OwnDistances::Member& member) {
    const auto now = collection.usable.find(member.label);
    return now != collection.usable.end() && now->second == member.record;
  };
  const auto search = [&](absl::Span<const OwnDistances::Member> members)
                          ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return NearestOthers(collection, kind, members); };
  return OwnDistances::Refreshed(collection.views[kind].own, sample, added, is_member, search);
}

// By embeddings, or by the states of a layer. As the view's index finds them: exact, or by its graph; all members in
// one search, in so many at once that what is found takes 16 MB at most. Of those with none of another embedding among
// what was found, more is asked for.
std::vector<OwnDistances::Nearest> ReferenceCatalog::NearestOthers(const Collection& collection, ViewKind kind,
                                                                   absl::Span<const OwnDistances::Member> members,
                                                                   std::optional<int> state_layer) const {
  constexpr size_t kFoundMax = 1 << 20;
  std::vector<OwnDistances::Nearest> nearest(members.size());
  std::vector<size_t> open(members.size());
  std::iota(open.begin(), open.end(), size_t{0});
  for (int k = 4; !open.empty(); k *= 8) {
    std::vector<size_t> still_open;
    const size_t at_once = std::max<size_t>(1, kFoundMax / static_cast<size_t>(k));
    for (size_t first = 0; first < open.size(); first += at_once) {
      const auto part = absl::MakeConstSpan(open).subspan(first, at_once);
      std::vector<float> queries;
      for (const size_t i : part) {
        const std::vector<float> vector =
            state_layer ? collection.states.at(*state_layer).indexes[kind]->Vector(members[i].label)
                        : members[i].record->embedding;
        queries.insert(queries.end(), vector.begin(), vector.end());
      }
      const auto found = SearchVisible(collection, kind, queries, k, state_layer);
      if (!found.ok()) return nearest;
      for (size_t j = 0; j < part.size(); ++j) {
        const auto is_other = [&](const LabeledDistance& each) {
          return each.label != members[part[j]].label && each.distance > OwnDistances::kSameEmbedding;
        };
        const auto other = std::find_if((*found)[j].begin(), (*found)[j].end(), is_other);
        if (other != (*found)[j].end()) {
          nearest[part[j]] = {{other->label, collection.usable.at(other->label)}, other->distance};
        } else if ((*found)[j].size() == static_cast<size_t>(k)) {
          still_open.push_back(part[j]);
        }
      }
    }
    if (k > INT_MAX / 8) break;
    open = std::move(still_open);
  }
  return nearest;
}

}  // namespace c3po
