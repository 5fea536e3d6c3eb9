#ifndef C3PO_INDEX_STORE_SQLITE_SQLITE_BACKUP_H_
#define C3PO_INDEX_STORE_SQLITE_SQLITE_BACKUP_H_

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "index/base/mutex.h"
#include "index/store/store_backup.h"

namespace c3po {

class SqliteConnection;

// SQLite's online backup, into one file that a server opens as a store.
class SqliteBackup final : public StoreBackup {
 public:
  // ReferenceStore::StartBackup says what it does. `mutex` guards `source`; `under_way` is set as long as there is a
  // copy; all three outlive it.
  static absl::StatusOr<std::unique_ptr<StoreBackup>> Start(SqliteConnection* source, Mutex& mutex,
                                                            std::atomic<bool>& under_way, const std::string& path);
  ~SqliteBackup() override;

  absl::StatusOr<bool> Step(int pages) override;

 private:
  struct Impl;
  explicit SqliteBackup(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_SQLITE_SQLITE_BACKUP_H_
