#include "index/search/prompt_index.h"

#include <algorithm>
#include <utility>

#include "absl/hash/hash.h"

namespace c3po {

uint64_t PromptIndex::KeyOf(absl::string_view collection, absl::string_view prompt) {
  return absl::Hash<std::pair<absl::string_view, absl::string_view>>()({collection, prompt});
}

void PromptIndex::Put(uint64_t key, const std::string& id) { ids_[key].push_back(id); }

void PromptIndex::Remove(uint64_t key, const std::string& id) {
  const auto found = ids_.find(key);
  if (found == ids_.end()) return;
  std::vector<std::string>& ids = found->second;
  ids.erase(std::remove(ids.begin(), ids.end(), id), ids.end());
  if (ids.empty()) ids_.erase(found);
}

std::vector<std::string> PromptIndex::Find(uint64_t key) const {
  const auto found = ids_.find(key);
  return found == ids_.end() ? std::vector<std::string>() : found->second;
}

}  // namespace c3po
