#ifndef C3PO_INDEX_STORE_STORE_BACKUP_H_
#define C3PO_INDEX_STORE_STORE_BACKUP_H_

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "index/base/mutex.h"

namespace c3po {

class SqliteConnection;

// A copy of a store under way, made a few pages at a time while the store is read and changed: SQLite's online backup.
// Not thread-safe, but its calls may come from different threads, and others may use the store meanwhile.
class StoreBackup {
 public:
  // ReferenceStore::StartBackup says what it does. `mutex` guards `source`; `under_way` is set as long as there is a
  // copy; all three outlive it.
  static absl::StatusOr<std::unique_ptr<StoreBackup>> Start(SqliteConnection* source, Mutex& mutex,
                                                            std::atomic<bool>& under_way, const std::string& path);
  ~StoreBackup();
  StoreBackup(const StoreBackup&) = delete;
  StoreBackup& operator=(const StoreBackup&) = delete;

  // Copies up to `pages` of 4 KiB more. True: the copy is whole and synced; it holds what the store did at this moment,
  // in one file that no log belongs to. Errors name the copy's path: ResourceExhausted (disk full), Internal. After an
  // error or true, no more calls.
  absl::StatusOr<bool> Step(int pages);

 private:
  struct Impl;
  explicit StoreBackup(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_STORE_BACKUP_H_
