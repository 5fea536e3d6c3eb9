#ifndef C3PO_INDEX_STORE_POSTGRES_NOTED_DAMAGE_H_
#define C3PO_INDEX_STORE_POSTGRES_NOTED_DAMAGE_H_

#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "index/base/mutex.h"
#include "index/store/damaged_rows.h"

namespace c3po {

// DamagedRows of a store whose rows several threads read at once. Thread-safe.
class NotedDamage {
 public:
  void Note(DamagedRow::Kind kind, absl::string_view collection, absl::string_view name, absl::string_view problem) {
    const MutexLock held(mutex_);
    rows_.Note(kind, collection, name, problem);
  }
  void Forget(const DamagedRow& row) {
    const MutexLock held(mutex_);
    rows_.Forget(row.kind, row.collection, row.name);
  }
  std::vector<DamagedRow> List() const {
    const MutexLock held(mutex_);
    return rows_.List();
  }
  absl::Status CheckReference(absl::string_view store, absl::string_view id) const {
    const MutexLock held(mutex_);
    return rows_.CheckReference(store, id);
  }

 private:
  mutable Mutex mutex_;
  DamagedRows rows_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_NOTED_DAMAGE_H_
