#ifndef C3PO_INDEX_STORE_STORE_BACKUP_H_
#define C3PO_INDEX_STORE_STORE_BACKUP_H_

#include "absl/status/statusor.h"

namespace c3po {

// A copy of a store under way, made a few pages at a time while the store is read and changed. Not thread-safe, but its
// calls may come from different threads, and others may use the store meanwhile. One that is destroyed before it is
// whole leaves no file.
class StoreBackup {
 public:
  virtual ~StoreBackup() = default;
  StoreBackup(const StoreBackup&) = delete;
  StoreBackup& operator=(const StoreBackup&) = delete;

  // Copies up to `pages` of 4 KiB more. True: the copy is whole and synced; it holds what the store did at this moment,
  // in one file that no log belongs to. Errors name the copy's path: ResourceExhausted (disk full), Internal. After an
  // error or true, no more calls.
  virtual absl::StatusOr<bool> Step(int pages) = 0;

 protected:
  StoreBackup() = default;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_STORE_BACKUP_H_
