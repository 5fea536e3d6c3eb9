#include "index/store/store_feed.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int kPageChanges = 1000;  // Read at once.

// Several pages of changes as one update: of each id, and of each artifact, what the last page has of it.
class Pages {
 public:
  void Add(StoreChanges page) {
    for (ReferenceRecord& record : page.records) {
      erased_.erase(record.id);
      const auto [place, is_new] = place_of_.try_emplace(record.id, records_.size());
      if (!is_new) records_[place->second] = nullptr;
      place->second = records_.size();
      records_.push_back(std::make_shared<const ReferenceRecord>(std::move(record)));
    }
    for (std::string& id : page.erased) {
      if (const auto place = place_of_.find(id); place != place_of_.end()) {
        records_[place->second] = nullptr;
        place_of_.erase(place);
      }
      erased_.insert(std::move(id));
    }
    for (Artifact& artifact : page.artifacts) {
      std::pair<std::string, std::string> key(artifact.collection, artifact.name);
      artifacts_[std::move(key)] = std::move(artifact);
    }
    generation_ = page.generation;
  }

  StoreUpdate Take() {
    StoreUpdate update;
    update.generation = generation_;
    update.records = std::move(records_);
    update.records.erase(std::remove(update.records.begin(), update.records.end(), nullptr), update.records.end());
    update.erased.assign(erased_.begin(), erased_.end());
    for (auto& [key, artifact] : artifacts_) update.artifacts.push_back(std::move(artifact));
    return update;
  }

 private:
  int64_t generation_ = 0;
  std::vector<std::shared_ptr<const ReferenceRecord>> records_;  // Null: a later page has another.
  absl::flat_hash_map<std::string, size_t> place_of_;
  absl::flat_hash_set<std::string> erased_;
  std::map<std::pair<std::string, std::string>, Artifact> artifacts_;
};

absl::StatusOr<StoreUpdate> ReadSince(const ReferenceStore& store, int64_t generation) {
  Pages pages;
  while (true) {
    C3PO_ASSIGN_OR_RETURN(StoreChanges page, store.ChangesSince(generation, kPageChanges));
    // A store that has not come so far is another one, or was restored from a backup.
    if (page.from_start || page.generation < generation) {
      StoreUpdate update;
      update.generation = page.generation;
      update.from_start = true;
      return update;
    }
    const bool more = page.more;
    generation = page.generation;
    pages.Add(std::move(page));
    if (!more) return pages.Take();
  }
}

}  // namespace

// What the first listener will read is of this generation at least.
void StoreFeed::Begin() {
  if (!std::exchange(begun_, true)) generation_ = store_->generation();
}

absl::Status StoreFeed::Join(StoreListener* listener) {
  const MutexLock lock(mutex_);
  Begin();
  C3PO_RETURN_IF_ERROR(CatchUpLocked());
  StoreUpdate everything;
  everything.generation = generation_;
  everything.from_start = true;
  C3PO_RETURN_IF_ERROR(listener->OnUpdate(everything));
  listeners_.push_back(listener);
  return absl::OkStatus();
}

void StoreFeed::Listen(StoreListener* listener) {
  const MutexLock lock(mutex_);
  Begin();
  listeners_.push_back(listener);
}

void StoreFeed::Leave(StoreListener* listener) {
  const MutexLock lock(mutex_);
  listeners_.erase(std::remove(listeners_.begin(), listeners_.end(), listener), listeners_.end());
}

absl::Status StoreFeed::CatchUp() {
  const MutexLock lock(mutex_);
  Begin();
  return CatchUpLocked();
}

absl::Status StoreFeed::CatchUpLocked() {
  C3PO_ASSIGN_OR_RETURN(const StoreUpdate update, ReadSince(*store_, generation_));
  const bool is_empty = update.records.empty() && update.erased.empty() && update.artifacts.empty();
  if (is_empty && update.generation == generation_ && !update.from_start) return absl::OkStatus();
  for (StoreListener* listener : listeners_) C3PO_RETURN_IF_ERROR(listener->OnUpdate(update));
  generation_ = update.generation;
  return absl::OkStatus();
}

absl::Status StoreFeed::CatchUpAfterChange() {
  const absl::Status status = CatchUp();
  if (status.ok()) return status;
  absl::Status after(status.code(), absl::StrCat("the change is stored, and not shown here yet: ", status.message()));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& payload) { after.SetPayload(url, payload); });
  return after;
}

absl::Status StoreFeed::CheckReachable() const {
  const MutexLock lock(reachable_mutex_);
  return reachable_;
}

void StoreFeed::NoteReachable(absl::Status status) {
  const MutexLock lock(reachable_mutex_);
  reachable_ = std::move(status);
}

absl::Status StoreFeed::PutArtifacts(absl::Span<const Artifact> artifacts) {
  C3PO_RETURN_IF_ERROR(CheckReachable());
  C3PO_RETURN_IF_ERROR(store_->PutArtifacts(artifacts));
  return CatchUpAfterChange();
}

}  // namespace c3po
