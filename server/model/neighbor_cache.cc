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
  if (by_key_.count(key) || state->bytes() > bytes_max_) return;
  bytes_ += state->bytes();
  entries_.push_front({key, std::move(state)});
  by_key_[key] = entries_.begin();
  while (bytes_ > bytes_max_) {
    bytes_ -= entries_.back().state->bytes();
    by_key_.erase(entries_.back().key);
    entries_.pop_back();
  }
}

}  // namespace c3po
