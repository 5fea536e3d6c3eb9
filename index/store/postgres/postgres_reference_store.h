#ifndef C3PO_INDEX_STORE_POSTGRES_POSTGRES_REFERENCE_STORE_H_
#define C3PO_INDEX_STORE_POSTGRES_POSTGRES_REFERENCE_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "index/store/reference_store.h"

namespace c3po {

// A schema of a PostgreSQL database (15 or later) that many servers share. ReferenceStore has the contract of every
// call, postgres_location.h says how the location is written, postgres_schema.h what the tables are.
//
// Changes: each is one transaction, which first locks the one row of table `state`. So changes follow each other, of
// whatever server, and their generations become visible in their order: a sequence would number transactions that
// commit in another one. The transaction notes the generation in the rows that it writes, raises it, draws a token into
// table `change`, and notifies the channel of the schema's name ("c3po"). It is committed with synchronous_commit on,
// or what the server has that is stricter. The server's own fsync and full_page_writes have to be on, as they are.
//
// Connections: up to PostgresPool::kSessionsMax for calls, and one that listens. No call waits for longer than the
// timeouts of StoreOptions, a few times over at worst; a session that does not answer by then is given up. One that
// broke is replaced: a call that reads, or a change whose commit was not asked for, is made again, once, by itself.
//
// A commit whose answer was lost: the server that has the session in hand holds the row of `state` until it has ended,
// either way. So a new session locks that row, and looks for the token: where it is, the change is committed, where it
// is not, it is not, and is made again. Where no session can be had for as long as a statement may take, the call is
// Unavailable, and says that the change may have been made.
//
// Thread-safe; calls run side by side. Messages name host, port and database, never user or password.
class PostgresReferenceStore final : public ReferenceStore {
 public:
  // Connects, and makes or upgrades the tables (PrepareSchema). Errors, besides the contract's:
  //   InvalidArgument: no PostgreSQL URL, or options.pages_max;  NotFound: no such database;
  //   FailedPrecondition: PostgreSQL older than 15, or a schema of a later version;
  //   PermissionDenied: the user, the password, or the tables, which their owner is to make first.
  static absl::StatusOr<std::unique_ptr<PostgresReferenceStore>> Open(const std::string& url,
                                                                      const StoreOptions& options = StoreOptions());
  // No call is under way.
  ~PostgresReferenceStore() override;

  absl::StatusOr<std::vector<AddOutcome>> Add(absl::Span<const ReferenceRecord> records) override;
  absl::StatusOr<ReferenceRecord> Get(absl::string_view id) const override;
  absl::StatusOr<std::vector<ReferenceRecord>> GetMany(absl::Span<const std::string> ids) const override;
  absl::StatusOr<std::vector<ReferenceRecord>> List(absl::string_view collection, absl::string_view after_id,
                                                    int limit) const override;
  absl::StatusOr<int64_t> Delete(absl::Span<const std::string> ids) override;
  absl::StatusOr<int64_t> DeleteCollection(absl::string_view collection) override;
  absl::Status PutArtifacts(absl::Span<const Artifact> artifacts) override;
  absl::StatusOr<std::vector<Artifact>> Artifacts(absl::string_view collection, absl::string_view prefix,
                                                  absl::string_view suffix = {}) const override;
  absl::StatusOr<std::vector<std::string>> CollectionsWith(absl::string_view artifact_name) const override;
  absl::StatusOr<std::vector<CollectionStats>> Stats(absl::string_view model_digest,
                                                     absl::string_view embedder_digest) const override;
  // Rows come one by one, and are not held here: any number of them takes the memory of one.
  absl::Status ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback,
                       int64_t* generation = nullptr) const override;
  absl::StatusOr<StoreChanges> ChangesSince(int64_t generation, int limit) const override;

  int64_t generation() const override;
  bool shared() const override { return true; }
  // Listens on a session of its own, and asks for the generation every second besides.
  absl::StatusOr<int64_t> WaitForGeneration(int64_t above, absl::Duration timeout) const override;

  // FailedPrecondition: PostgreSQL's own tools copy a database, with a point in time to return to.
  absl::StatusOr<std::unique_ptr<StoreBackup>> StartBackup(const std::string& path) const override;
  std::string partial_backup_path() const override { return ""; }

  std::vector<DamagedRow> Damaged() const override;
  std::string empty_problem() const override;
  std::string index_problem() const override { return ""; }  // PostgreSQL looks after its indexes by itself.

  // Asks the database whether the schema is the one that was opened (its store_id), has its tables, and is not at an
  // earlier generation than was met, as a backup that was restored is. Looks again at damaged rows, which others may
  // have written anew.
  absl::Status CheckPlace() override;

  const std::string& location() const override;

 private:
  struct Impl;
  explicit PostgresReferenceStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_POSTGRES_REFERENCE_STORE_H_
