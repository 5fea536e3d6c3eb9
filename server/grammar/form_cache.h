#ifndef C3PO_SERVER_GRAMMAR_FORM_CACHE_H_
#define C3PO_SERVER_GRAMMAR_FORM_CACHE_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/types/answer_form.h"

namespace c3po {

// What compiling gave, by the form's bytes: forms, and refusals, so that what was refused after some seconds is refused
// at once the next time. The least recently used ones go. Of one thread at a time.
class FormCache {
 public:
  using Result = absl::StatusOr<std::shared_ptr<const CompiledForm>>;
  // Entries, and bytes of forms and keys; what is larger alone is not kept.
  FormCache(size_t entries_max, int64_t bytes_max) : entries_max_(entries_max), bytes_max_(bytes_max) {}

  // Null: not known.
  const Result* Find(absl::string_view key) {
    const auto found = by_key_.find(key);
    if (found == by_key_.end()) return nullptr;
    entries_.splice(entries_.begin(), entries_, found->second);
    return &found->second->result;
  }

  void Keep(const std::string& key, Result result) {
    const int64_t bytes = static_cast<int64_t>(2 * key.size()) + (result.ok() ? (*result)->bytes() : 512);
    if (by_key_.contains(key) || bytes > bytes_max_) return;
    entries_.push_front({key, std::move(result), bytes});
    by_key_[key] = entries_.begin();
    bytes_ += bytes;
    while (entries_.size() > entries_max_ || bytes_ > bytes_max_) {
      bytes_ -= entries_.back().bytes;
      by_key_.erase(entries_.back().key);
      entries_.pop_back();
    }
  }

  size_t entries() const { return entries_.size(); }
  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    std::string key;
    Result result;
    int64_t bytes;
  };
  const size_t entries_max_;
  const int64_t bytes_max_;
  int64_t bytes_ = 0;
  std::list<Entry> entries_;  // The last used first.
  absl::flat_hash_map<std::string, std::list<Entry>::iterator> by_key_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_GRAMMAR_FORM_CACHE_H_
