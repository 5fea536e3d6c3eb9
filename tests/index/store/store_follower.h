#ifndef C3PO_TESTS_INDEX_STORE_STORE_FOLLOWER_H_
#define C3PO_TESTS_INDEX_STORE_STORE_FOLLOWER_H_

#include <map>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "index/store/reference_store.h"
#include "tests/index/store/any_store.h"

namespace c3po {

// What somebody holds who knows a store by its changes alone.
struct StoreFollower {
  using ArtifactName = std::pair<std::string, std::string>;  // Collection, name.

  int64_t generation = 0;
  std::map<std::string, std::string> records;  // By id, as text.
  std::map<ArtifactName, std::string> artifacts;
  int pages = 0, starts = 0;

  void Take(const StoreChanges& changes) {
    ++pages;
    if (changes.from_start) {
      ++starts;
      records.clear();
      artifacts.clear();
    }
    for (const std::string& id : changes.erased) records.erase(id);
    for (const ReferenceRecord& record : changes.records) records[record.id] = TextOf(record);
    for (const Artifact& artifact : changes.artifacts) {
      if (artifact.value.empty()) {
        artifacts.erase({artifact.collection, artifact.name});
      } else {
        artifacts[{artifact.collection, artifact.name}] = artifact.value;
      }
    }
    generation = changes.generation;
  }

  // Until nothing is left; pages of `limit`.
  absl::Status CatchUp(const ReferenceStore& store, int limit) {
    while (true) {
      const auto changes = store.ChangesSince(generation, limit);
      if (!changes.ok()) return changes.status();
      Take(*changes);
      if (!changes->more) return absl::OkStatus();
    }
  }
};

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_STORE_STORE_FOLLOWER_H_
