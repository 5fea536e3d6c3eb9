// How the store's content and its changes reach the searches. Updates come from the store's feed (StoreFeed), this
// server's own changes too. Taking a vector into a graph is slow (up to a millisecond), and a search must see an update
// whole or not at all. So what searches may return is one map per collection (`usable`), and an index may for a while
// hold labels that are not in it:
//   announce how many hidden labels come (exclusive, short); add them to the indexes beside running searches; enter all
//   of them into the map, and take all that has gone out of it (exclusive, short); remove that from the indexes beside
//   running searches.
// An update ends by bringing the own distances of the views it touched up to date. A search asks an index for k plus
// the hidden ones and drops what is not in the map. Where more come than a view has, as after a long time away, they
// are taken into a new index beside the old one, which hides nothing then.

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

constexpr int64_t kManyArrivals = 1024;

}  // namespace

void ReferenceCatalog::Take(absl::Span<const Candidate> candidates, absl::Span<const std::string> erased,
                            int64_t generation) {
  const LabeledByCollection arrivals = AssignLabels(candidates);
  ReserveHidden(arrivals);
  const IndexesByCollection replacements = FillIndexes(arrivals);
  Publish(candidates, erased, arrivals, replacements, generation);
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

std::vector<ReferenceCatalog::Labeled> ReferenceCatalog::Entering(ViewKind kind, absl::Span<const Labeled> arrivals) {
  std::vector<Labeled> entering;
  std::copy_if(arrivals.begin(), arrivals.end(), std::back_inserter(entering),
               [kind](const Labeled& each) { return IsIn(kind, *each.record); });
  return entering;
}

// Whether so many arrivals are taken into a new index, and not beside those that the view's index holds: it has
// outgrown that, or they are many, and more than are there.
bool ReferenceCatalog::BuildsAnew(const View& view, size_t arrivals) const {
  const auto count = static_cast<int64_t>(arrivals);
  return builder_.Outgrown(*view.index, view.references + count) || (count >= kManyArrivals && count > view.references);
}

// From here on searches expect the arrivals among what the indexes return. A collection made here has no references
// yet, and so does not exist for searches.
void ReferenceCatalog::ReserveHidden(const LabeledByCollection& arrivals) {
  WriterLock lock(mutex_);
  for (const auto& [name, labeled] : arrivals) {
    Collection& collection = CollectionNamed(name);
    for (ViewKind kind : kViewKinds) {
      View& view = collection.views[kind];
      const size_t entering = Entering(kind, labeled).size();
      view.hidden = BuildsAnew(view, entering) ? 0 : static_cast<int>(entering);
    }
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
    for (ViewKind kind : kViewKinds) replacements[name][kind] = FillIndex(name, kind, Entering(kind, labeled));
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
  if (!BuildsAnew(view, arrivals.size())) {
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

// Makes an update visible, and what it replaces and erases invisible, at one moment.
void ReferenceCatalog::Publish(absl::Span<const Candidate> candidates, absl::Span<const std::string> erased,
                               const LabeledByCollection& arrivals, const IndexesByCollection& replacements,
                               int64_t generation) {
  LabeledByCollection departed;
  std::vector<std::string> emptied;
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
    for (const std::string& id : erased) Unpublish(id, departed);
    for (const Candidate& candidate : candidates) Unpublish(candidate.record->id, departed);
    Enter(candidates, arrivals);
    ShowPathways(pathways, arrivals);
    HidePathways(departed);
    emptied = DropEmptyCollections(departed);
    generation_ = generation;
  }
  RemoveGraphFiles(emptied);
  RemoveFromIndexes(departed);
  RefreshDistances(arrivals, departed);
}

// The candidates, of which none is there.
void ReferenceCatalog::Enter(absl::Span<const Candidate> candidates, const LabeledByCollection& arrivals) {
  for (const Candidate& candidate : candidates) {
    const ReferenceRecord& record = *candidate.record;
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
      collection.metadata.Add(arrival.label, *arrival.record);
      Entry& entry = entries_[arrival.record->id];
      entry.record = arrival.record;
      entry.label = arrival.label;
      for (ViewKind kind : kViewKinds) collection.views[kind].references += IsIn(kind, *arrival.record);
    }
  }
}

// Collections without references do not exist. Returns those that went; nothing of them is left in `departed`.
std::vector<std::string> ReferenceCatalog::DropEmptyCollections(LabeledByCollection& departed) {
  std::vector<std::string> emptied;
  for (auto it = collections_.begin(); it != collections_.end();) {
    if (it->second.references > 0) {
      ++it;
      continue;
    }
    departed.erase(it->first);
    emptied.push_back(it->first);
    it = collections_.erase(it);
  }
  return emptied;
}

// A file that stays is refused at the next start.
void ReferenceCatalog::RemoveGraphFiles(absl::Span<const std::string> collections) const {
  if (options_.graph_cache_folder.empty()) return;
  std::error_code ignored;
  for (const std::string& collection : collections) {
    for (ViewKind kind : kViewKinds) std::filesystem::remove(GraphPath(collection, kind), ignored);
  }
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
    collection.metadata.Remove(entry.label, *entry.record);
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

// What has gone leaves the indexes: nothing hidden is left.
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

// The end of an update: every view that it touched knows its members' own distances again. Searches go on meanwhile and
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
