#include "server/model/neighbor_cache.h"

#include "absl/strings/str_cat.h"
#include "index/base/sha256.h"

namespace c3po {

// By content, not by id alone: the same reference is fitted to its answer in one request and to all its choices in
// another.
std::string NeighborCache::KeyOf(const NeighborCase& neighbor, const MovingPart& moving) {
  Sha256 hash;
  const auto add = [&hash](const std::vector<int32_t>& tokens) {
    const int64_t size = static_cast<int64_t>(tokens.size());
    hash.Update({reinterpret_cast<const char*>(&size), sizeof(size)});
    hash.Update({reinterpret_cast<const char*>(tokens.data()), tokens.size() * sizeof(int32_t)});
  };
  add(neighbor.prompt);
  for (const std::vector<int32_t>& continuation : neighbor.continuations) add(continuation);
  return absl::StrCat(moving.first_layer, ":", moving.prompt_positions, ":", hash.HexDigest());
}

std::shared_ptr<const MoeNeighborState> NeighborCache::Find(const std::string& key) {
  const auto found = by_key_.find(key);
  if (found == by_key_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found->second);
  return found->second->state;
}

void NeighborCache::Insert(const std::string& key, std::shared_ptr<const MoeNeighborState> state) {
  if (by_key_.count(key) || !state->states->in_pool()) return;
  bytes_ += state->states->bytes();
  entries_.push_front({key, std::move(state)});
  by_key_[key] = entries_.begin();
}

bool NeighborCache::Drop(int64_t bytes) {
  // An objective holds the blocks alone. Nobody but the cache can hand them out, so that 1 stays 1.
  const auto is_held = [](const Entry& entry) {
    return entry.state.use_count() > 1 || entry.state->states.use_count() > 1;
  };
  std::vector<std::list<Entry>::iterator> dropped;
  int64_t found = 0;
  for (auto entry = entries_.end(); found < bytes && entry != entries_.begin();) {
    if (is_held(*--entry)) continue;
    found += entry->state->states->bytes();
    dropped.push_back(entry);
  }
  if (found < bytes) return false;
  for (const auto& entry : dropped) {
    bytes_ -= entry->state->states->bytes();
    by_key_.erase(entry->key);
    entries_.erase(entry);
  }
  return true;
}

}  // namespace c3po
