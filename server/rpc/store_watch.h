#ifndef C3PO_SERVER_RPC_STORE_WATCH_H_
#define C3PO_SERVER_RPC_STORE_WATCH_H_

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "index/store/reference_store.h"
#include "server/metrics/metrics.h"
#include "server/process/periodic.h"

namespace c3po {

// Tells an operator what has become of the store under a running server. It looks every second, on a thread of its own:
// whether the store is still in its place, and its tables in it (ReferenceStore::CheckPlace; log events store_lost,
// store_away and store_back), and which rows are damaged (one event row_damaged for each, the first kLinesMax of a
// look). Metrics count both. Thread-safe.
class StoreWatch {
 public:
  static constexpr size_t kLinesMax = 20;

  // Has looked once when it returns. `store` and `metrics` outlive the watch; `metrics` may be null.
  StoreWatch(ReferenceStore* store, Metrics* metrics, absl::Duration every = absl::Seconds(1));

  // Whether the store or a table is gone, so that nothing can be stored until somebody puts it back. A database that
  // does not answer is not lost. Never waits.
  bool lost() const { return lost_.load(); }
  // One line for a store that is lost or away, one for damaged rows. Never waits for the store.
  std::vector<std::string> Warnings() const;

 private:
  void Look();
  void TellDamage(const std::vector<DamagedRow>& rows) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  ReferenceStore* const store_;
  Metrics* const metrics_;
  std::atomic<bool> lost_{false};
  bool away_ = false;  // Of the thread that looks.
  mutable absl::Mutex mu_;
  std::string fault_ ABSL_GUARDED_BY(mu_);
  std::string damage_ ABSL_GUARDED_BY(mu_);
  std::set<std::string> told_ ABSL_GUARDED_BY(mu_);  // Damaged rows that the log has.
  std::unique_ptr<Periodic> looks_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_STORE_WATCH_H_
