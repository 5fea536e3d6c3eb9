#ifndef C3PO_SERVER_PIPELINE_REFERENCE_STATE_BUILDER_H_
#define C3PO_SERVER_PIPELINE_REFERENCE_STATE_BUILDER_H_

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "index/base/mutex.h"
#include "index/search/reference_catalog.h"
#include "server/pipeline/generation_types.h"
#include "server/pipeline/prompt_text.h"
#include "server/pipeline/worker_pool.h"
#include "server/scheduler/engine.h"

namespace c3po {

// Makes the hidden states of references that requests with another `neighbor_source` than the encoder's search among,
// where a collection lacks some: the state of each reference's last prompt token, entering a layer, unit length, by one
// pass over its prompt at low priority. What is made stays, in the catalog and its store, so that only the first
// request of a layer waits for all of them, and later ones for those of references that came since. A batch at a time,
// in which collections and layers take turns; it ends when nobody waits any more. Thread-safe.
class ReferenceStateBuilder {
 public:
  // Nothing is owned; all outlives it, and the engine is stopped or goes on until it has gone.
  ReferenceStateBuilder(Engine* engine, ReferenceCatalog* catalog, const PromptText* text)
      : engine_(engine), catalog_(catalog), text_(text), pool_(1, kTasksMax) {}
  // Those that wait hear Unavailable.
  ~ReferenceStateBuilder();

  // True: the collection has them all, or has no usable reference, and `ready` will not be called. Else `ready` is
  // called once, from another thread: OK once it has them; Cancelled or DeadlineExceeded as the call is; what
  // failed. The tokens of the references are owed by the call that was the first to wait.
  using Ready = std::function<void(const absl::Status&)>;
  bool WhenReady(const CallContext& context, const std::string& collection, int layer, Ready ready);

 private:
  static constexpr int kTasksMax = 1024;
  using Key = std::pair<std::string, int>;  // collection, layer
  struct Waiter {
    CallContext context;
    Ready ready;
  };
  struct Task {
    std::vector<Waiter> waiters;
    int64_t made = 0;
    absl::Time began;
  };
  class StateSink;

  void Schedule(const Key& key);
  absl::Status RunBatch(const Key& key);
  absl::StatusOr<std::vector<ReferenceCatalog::ReferenceState>> Compute(
      const std::vector<std::shared_ptr<const ReferenceRecord>>& records, int layer,
      const std::shared_ptr<RateLimiter::Call>& rates);
  absl::Status Submit(const ReferenceRecord& record, int layer, std::shared_ptr<StateSink> sink,
                      const std::shared_ptr<RateLimiter::Call>& rates);
  bool AnybodyWaits(const Key& key);
  std::shared_ptr<RateLimiter::Call> RatesOf(const Key& key);
  void End(const Key& key, const absl::Status& status);

  Engine* const engine_;
  ReferenceCatalog* const catalog_;
  const PromptText* const text_;
  const std::shared_ptr<std::atomic<bool>> stopping_ = std::make_shared<std::atomic<bool>>(false);
  Mutex mutex_;
  std::map<Key, Task> tasks_ ABSL_GUARDED_BY(mutex_);
  WorkerPool pool_;  // Last: its jobs use the others.
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_REFERENCE_STATE_BUILDER_H_
