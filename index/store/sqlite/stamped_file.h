#ifndef C3PO_INDEX_STORE_SQLITE_STAMPED_FILE_H_
#define C3PO_INDEX_STORE_SQLITE_STAMPED_FILE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "index/base/mutex.h"
#include "index/store/sqlite/sqlite_connection.h"
#include "index/store/sqlite/store_file.h"

namespace c3po {

// Whether the open file is still this store, with its tables: table `store_state` has a stamp, which each change draws
// anew, and the file must hold the last one, or one of those before it that a reader keeps in the log. Its tables must
// be those that this build's statements fit.
//
// The calls that take the connection are made by whoever holds the store's lock. The others are thread-safe, and never
// wait for that lock.
class StampedFile {
 public:
  // `file` is locked, and its connection open; it outlives that.
  explicit StampedFile(StoreFile& file) : file_(file) {}

  // Once, when the schema is there: from now on the file and its log are expected to stay these.
  absl::Status Learn(SqliteConnection& connection);

  // What CheckAsKnown says after a look at the tables, and at where the stamp lies now.
  absl::Status Check(SqliteConnection& connection);
  // Looks whether another program has dropped or altered a table; CheckAsKnown tells.
  void LookAtTables(SqliteConnection& connection);
  // StoreFile::Check, then what is known of the tables. While a change is under way it may call a sound file lost.
  absl::Status CheckAsKnown();
  // What the last look found.
  absl::Status fault() const;

  // Within the transaction of a change: draws a new stamp, which the file may hold from now on, and raises the
  // generation. Returns the stamp; empty where the table lost its row.
  absl::StatusOr<std::string> Stamp(SqliteConnection& connection, absl::string_view action);
  // The change with this stamp is committed.
  void Committed(absl::string_view stamp);

  static absl::StatusOr<int64_t> Generation(SqliteConnection& connection);

 private:
  StoreFile& file_;
  mutable Mutex mutex_;                                      // Taken after the store's.
  int64_t page_ ABSL_GUARDED_BY(mutex_) = 0;                 // Where the stamp lies.
  std::vector<std::string> stamps_ ABSL_GUARDED_BY(mutex_);  // Those that may be there. None: it is not known.
  int64_t sound_schema_ ABSL_GUARDED_BY(mutex_) = -1;  // SQLite's count of changes, at which the tables were sound.
  absl::Status table_fault_ ABSL_GUARDED_BY(mutex_);
  absl::Status fault_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_SQLITE_STAMPED_FILE_H_
