#ifndef C3PO_INDEX_SEARCH_PROMPT_INDEX_H_
#define C3PO_INDEX_SEARCH_PROMPT_INDEX_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Which references have a prompt. The prompts themselves are not kept: two with one hash of 64 bits look alike here, so
// whoever acts on what is found compares the texts. About 100 bytes a reference. Not thread-safe.
class PromptIndex {
 public:
  // Of a prompt in a collection; the same within one run of the process.
  static uint64_t KeyOf(absl::string_view collection, absl::string_view prompt);

  // An id is put once, and removed with the key it was put with.
  void Put(uint64_t key, const std::string& id);
  void Remove(uint64_t key, const std::string& id);
  // In the order in which they were put; empty: none.
  std::vector<std::string> Find(uint64_t key) const;

 private:
  absl::flat_hash_map<uint64_t, std::vector<std::string>> ids_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_PROMPT_INDEX_H_
