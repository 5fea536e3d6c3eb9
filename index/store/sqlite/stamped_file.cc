#include "index/store/sqlite/stamped_file.h"

#include "index/base/status_macros.h"
#include "index/store/sqlite/sqlite_schema.h"

namespace c3po {
namespace {

constexpr size_t kStampsMax = 1000;  // Of changes that a reader keeps out of the file.

constexpr char kSelectPage[] = "SELECT rootpage FROM sqlite_master WHERE name = 'store_state'";
constexpr char kSelectStamp[] = "SELECT stamp FROM store_state";
constexpr char kSelectGeneration[] = "SELECT generation FROM store_state";
constexpr char kDrawStamp[] =
    "UPDATE store_state SET generation = generation + 1, stamp = randomblob(16) RETURNING stamp";

}  // namespace

absl::StatusOr<int64_t> StampedFile::Generation(SqliteConnection& connection) {
  return connection.QueryInteger(kSelectGeneration);
}

absl::Status StampedFile::Learn(SqliteConnection& connection) {
  file_.NoteLog();
  C3PO_ASSIGN_OR_RETURN(const int64_t page, connection.QueryInteger(kSelectPage));
  SqliteStatement select(connection);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectStamp));
  C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read the stamp"));
  const std::string stamp = row ? select.Text(0) : "";
  const MutexLock held(mutex_);
  page_ = page;
  // Where a reader keeps the last change in the log, the file holds another stamp, which is not known.
  if (stamp.size() == StoreFile::kStampBytes && file_.Holds(page, stamp)) stamps_ = {stamp};
  return absl::OkStatus();
}

absl::Status StampedFile::CheckAsKnown() {
  int64_t page = 0;
  std::vector<std::string> stamps;
  {
    const MutexLock held(mutex_);
    page = page_;
    stamps = stamps_;
  }
  absl::Status found = file_.Check(page, stamps);
  const MutexLock held(mutex_);
  if (found.ok()) found = table_fault_;
  fault_ = found;
  return found;
}

void StampedFile::LookAtTables(SqliteConnection& connection) {
  const auto version = connection.QueryInteger("PRAGMA schema_version");
  {
    const MutexLock held(mutex_);
    if (!version.ok() || *version == sound_schema_) return;  // What is wrong with the file is said by others.
  }
  // A statement that runs has SQLite read its schema anew; one that is prepared is held against the one it knew.
  if (!connection.QueryInteger("SELECT count(*) FROM sqlite_master").ok()) return;
  const absl::Status found = ProbeTables(connection);
  if (!found.ok() && !absl::IsDataLoss(found)) return;
  const MutexLock held(mutex_);
  if (found.ok()) sound_schema_ = *version;
  table_fault_ = found;
}

absl::Status StampedFile::Check(SqliteConnection& connection) {
  LookAtTables(connection);
  if (CheckAsKnown().ok()) return absl::OkStatus();
  // Another program that vacuums the file, as SQLite lets it, may have moved the stamp.
  if (const auto page = connection.QueryInteger(kSelectPage); page.ok()) {
    const MutexLock held(mutex_);
    page_ = *page;
  }
  return CheckAsKnown();
}

absl::Status StampedFile::fault() const {
  const MutexLock held(mutex_);
  return fault_;
}

absl::StatusOr<std::string> StampedFile::Stamp(SqliteConnection& connection, absl::string_view action) {
  SqliteStatement update(connection);
  C3PO_RETURN_IF_ERROR(update.Prepare(kDrawStamp));
  C3PO_ASSIGN_OR_RETURN(const bool row, update.Step(action));
  const std::string stamp = row ? update.Text(0) : "";
  C3PO_RETURN_IF_ERROR(update.Step(action).status());
  const MutexLock held(mutex_);
  if (!stamps_.empty()) stamps_.push_back(stamp);
  return stamp;
}

void StampedFile::Committed(absl::string_view stamp) {
  const MutexLock held(mutex_);
  if (file_.Holds(page_, stamp)) {
    stamps_ = {std::string(stamp)};
  } else if (stamps_.size() > kStampsMax) {
    stamps_.clear();
  }
}

}  // namespace c3po
