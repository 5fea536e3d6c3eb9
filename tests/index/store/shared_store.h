#ifndef C3PO_TESTS_INDEX_STORE_SHARED_STORE_H_
#define C3PO_TESTS_INDEX_STORE_SHARED_STORE_H_

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "index/base/store_away.h"
#include "index/store/reference_store.h"

namespace c3po {

// A server's own view of a store that several of one process share: what a database is to servers, made of a file.
// `away`: nothing answers. `paused`: calls wait, for kCallMax, and then nothing has answered. `deaf`: changes are not
// announced, so that they are seen when a wait ends.
class SharedStore final : public ReferenceStore {
 public:
  static constexpr absl::Duration kCallMax = absl::Seconds(5);

  explicit SharedStore(ReferenceStore* store) : store_(store) {}
  // As where a database is restored from a backup.
  void Replace(ReferenceStore* store) { store_ = store; }
  std::atomic<bool> away{false}, paused{false}, deaf{false};
  mutable std::atomic<int> calls{0};  // That came, answered or not.

  absl::StatusOr<std::vector<AddOutcome>> Add(absl::Span<const ReferenceRecord> records) override {
    return Reached<std::vector<AddOutcome>>([&] { return store()->Add(records); });
  }
  absl::StatusOr<ReferenceRecord> Get(absl::string_view id) const override {
    return Reached<ReferenceRecord>([&] { return store()->Get(id); });
  }
  absl::StatusOr<std::vector<ReferenceRecord>> GetMany(absl::Span<const std::string> ids) const override {
    return Reached<std::vector<ReferenceRecord>>([&] { return store()->GetMany(ids); });
  }
  absl::StatusOr<std::vector<ReferenceRecord>> List(absl::string_view collection, absl::string_view after_id,
                                                    int limit) const override {
    return Reached<std::vector<ReferenceRecord>>([&] { return store()->List(collection, after_id, limit); });
  }
  absl::StatusOr<int64_t> Delete(absl::Span<const std::string> ids) override {
    return Reached<int64_t>([&] { return store()->Delete(ids); });
  }
  absl::StatusOr<int64_t> DeleteCollection(absl::string_view collection) override {
    return Reached<int64_t>([&] { return store()->DeleteCollection(collection); });
  }
  absl::Status PutArtifacts(absl::Span<const Artifact> artifacts) override {
    const absl::Status reached = Reach();
    return reached.ok() ? store()->PutArtifacts(artifacts) : reached;
  }
  absl::StatusOr<std::vector<Artifact>> Artifacts(absl::string_view collection, absl::string_view prefix,
                                                  absl::string_view suffix) const override {
    return Reached<std::vector<Artifact>>([&] { return store()->Artifacts(collection, prefix, suffix); });
  }
  absl::StatusOr<std::vector<std::string>> CollectionsWith(absl::string_view artifact_name) const override {
    return Reached<std::vector<std::string>>([&] { return store()->CollectionsWith(artifact_name); });
  }
  absl::StatusOr<std::vector<CollectionStats>> Stats(absl::string_view model_digest,
                                                     absl::string_view embedder_digest) const override {
    return Reached<std::vector<CollectionStats>>([&] { return store()->Stats(model_digest, embedder_digest); });
  }
  absl::Status ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback, int64_t* generation) const override {
    const absl::Status reached = Reach();
    return reached.ok() ? store()->ForEach(callback, generation) : reached;
  }
  absl::StatusOr<StoreChanges> ChangesSince(int64_t generation, int limit) const override {
    // Pages that tests can fill.
    return Reached<StoreChanges>([&] { return store()->ChangesSince(generation, std::min(limit, page_max.load())); });
  }
  std::atomic<int> page_max{1 << 20};
  int64_t generation() const override { return store()->generation(); }
  bool shared() const override { return true; }
  absl::StatusOr<int64_t> WaitForGeneration(int64_t above, absl::Duration timeout) const override {
    const absl::Status reached = Reach();
    if (!reached.ok()) return reached;
    if (!deaf) return store()->WaitForGeneration(above, timeout);
    absl::SleepFor(timeout);
    return store()->generation();
  }
  absl::StatusOr<std::unique_ptr<StoreBackup>> StartBackup(const std::string&) const override {
    return absl::FailedPreconditionError("a shared store is copied by other means");
  }
  std::string partial_backup_path() const override { return ""; }
  std::vector<DamagedRow> Damaged() const override { return store()->Damaged(); }
  std::string empty_problem() const override { return ""; }
  std::string index_problem() const override { return ""; }
  absl::Status CheckPlace() override { return Reach(); }
  const std::string& location() const override { return store()->location(); }

 private:
  ReferenceStore* store() const { return store_.load(); }
  absl::Status Reach() const {
    ++calls;
    const absl::Time end = absl::Now() + kCallMax;
    while (paused && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
    if (away || paused) return StoreAwayError("store shared: the database does not answer");
    return absl::OkStatus();
  }
  template <typename T>
  absl::StatusOr<T> Reached(absl::FunctionRef<absl::StatusOr<T>()> call) const {
    const absl::Status reached = Reach();
    if (!reached.ok()) return reached;
    return call();
  }

  std::atomic<ReferenceStore*> store_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_STORE_SHARED_STORE_H_
