#ifndef C3PO_INDEX_SEARCH_ANSWER_GROUPS_H_
#define C3PO_INDEX_SEARCH_ANSWER_GROUPS_H_

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/string_view.h"
#include "index/base/mutex.h"
#include "index/search/label_filter.h"
#include "index/types/reference_record.h"

namespace c3po {

// The references of a collection by the set of their choices, and each such group by answer: what neighbors are
// balanced over. Choices are compared as sets of texts, whatever their order; references without choices are one group.
// About 60 bytes a reference, and each answer's text once a group.
//
// Changes need the owner's lock; Of may run beside others of its kind.
class AnswerGroups {
 public:
  // A label is added once, and removed with the record that it was added with.
  void Add(int64_t label, const ReferenceRecord& record);
  void Remove(int64_t label, const ReferenceRecord& record);

  // An answer of a group, and the references that have it; at least one. The text lasts until the next change.
  struct Answer {
    absl::string_view text;
    std::shared_ptr<const LabelFilter> labels;
  };
  // The answers of the group that `record` belongs to, by ascending text; those of successful references alone, or of
  // all. A filter is made when it is first asked for after a change, from as many labels as it holds.
  std::vector<Answer> Of(const ReferenceRecord& record, bool successful_only) const;

 private:
  using Key = std::pair<uint64_t, uint64_t>;  // the first 128 bits of the SHA-256 of the sorted choices
  struct Members {
    absl::flat_hash_set<int64_t> labels;
    mutable std::shared_ptr<const LabelFilter> filter;  // null: not made since the last change
  };
  using ByView = std::array<Members, 2>;  // of all, of successful references

  static Key KeyOf(const ReferenceRecord& record);

  absl::flat_hash_map<Key, std::map<std::string, ByView>> groups_;
  mutable std::unique_ptr<Mutex> filters_mutex_ = std::make_unique<Mutex>();  // of every Members::filter
};

}  // namespace c3po

#endif  // C3PO_INDEX_SEARCH_ANSWER_GROUPS_H_
