#include "index/search/answer_groups.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/base/sha256.h"

namespace c3po {

AnswerGroups::Key AnswerGroups::KeyOf(const ReferenceRecord& record) {
  std::vector<absl::string_view> choices(record.sample.choices.begin(), record.sample.choices.end());
  std::sort(choices.begin(), choices.end());
  Sha256 hash;
  for (const absl::string_view choice : choices) {
    hash.Update(absl::StrCat(choice.size(), ":"));  // So that no two lists are the same bytes.
    hash.Update(choice);
  }
  const std::string digest = hash.Digest();
  Key key;
  std::memcpy(&key.first, digest.data(), sizeof(key.first));
  std::memcpy(&key.second, digest.data() + sizeof(key.first), sizeof(key.second));
  return key;
}

void AnswerGroups::Add(int64_t label, const ReferenceRecord& record) {
  ByView& views = groups_[KeyOf(record)][record.sample.answer];
  for (const size_t view : {size_t{0}, size_t{1}}) {
    if (view == 1 && !record.successful) continue;
    views[view].labels.insert(label);
    const MutexLock lock(*filters_mutex_);
    views[view].filter.reset();
  }
}

void AnswerGroups::Remove(int64_t label, const ReferenceRecord& record) {
  const auto group = groups_.find(KeyOf(record));
  if (group == groups_.end()) return;
  const auto answer = group->second.find(record.sample.answer);
  if (answer == group->second.end()) return;
  for (Members& members : answer->second) {
    if (members.labels.erase(label) == 0) continue;
    const MutexLock lock(*filters_mutex_);
    members.filter.reset();
  }
  if (!answer->second[0].labels.empty()) return;
  group->second.erase(answer);
  if (group->second.empty()) groups_.erase(group);
}

std::vector<AnswerGroups::Answer> AnswerGroups::Of(const ReferenceRecord& record, bool successful_only) const {
  std::vector<Answer> answers;
  const auto group = groups_.find(KeyOf(record));
  if (group == groups_.end()) return answers;
  const MutexLock lock(*filters_mutex_);
  for (const auto& [text, views] : group->second) {
    const Members& members = views[successful_only ? 1 : 0];
    if (members.labels.empty()) continue;
    if (members.filter == nullptr) {
      members.filter =
          std::make_shared<const LabelFilter>(std::vector<int64_t>(members.labels.begin(), members.labels.end()));
    }
    answers.push_back({text, members.filter});
  }
  return answers;
}

}  // namespace c3po
