#ifndef C3PO_INDEX_STORE_STORE_FEED_H_
#define C3PO_INDEX_STORE_STORE_FEED_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/types/span.h"
#include "index/base/mutex.h"
#include "index/store/reference_store.h"
#include "index/types/reference_record.h"

namespace c3po {

// What became of a store between two of its states. An id is in `records` or in `erased`, never in both, and once.
struct StoreUpdate {
  int64_t generation = 0;  // Of the state that it leads to.
  // Everything that is held may be wrong: whoever holds something reads it again, from a state of at least
  // `generation`. The lists are empty then.
  bool from_start = false;
  std::vector<std::shared_ptr<const ReferenceRecord>> records;  // Added or replaced, as they are now.
  std::vector<std::string> erased;
  std::vector<Artifact> artifacts;  // Put, or removed (no value). Those of erased references need not be among them.
};

// Whoever holds in memory what a store has.
class StoreListener {
 public:
  virtual ~StoreListener() = default;
  // Brings what is held to the update's state. Calls come one at a time, in the order of generations. What the listener
  // has read of the store by itself may be newer than an update, so applying one again, or an older value for a moment,
  // must do no harm. Must not call the feed. An error ends the catching up; the same changes come again with the next.
  virtual absl::Status OnUpdate(const StoreUpdate& update) = 0;
};

// The one way in which changes of a store reach what a server holds of it, whoever made them: a call of this server, or
// another server over the same database. A change is committed first; then CatchUp reads all that was committed since
// (ReferenceStore::ChangesSince) and tells every listener, in the order in which they joined. So no change is told
// before it is durable, and none is missed, whatever notifications are lost.
//
// Thread-safe. Errors are the store's.
class StoreFeed {
 public:
  // `store` outlives the feed.
  explicit StoreFeed(ReferenceStore* store) : store_(store) {}
  StoreFeed(const StoreFeed&) = delete;
  StoreFeed& operator=(const StoreFeed&) = delete;

  // The listener is told from_start, and from then on each update, until it leaves. On an error it has not joined.
  absl::Status Join(StoreListener* listener);
  // The same for a listener that holds nothing yet, and reads what it is asked for by itself.
  void Listen(StoreListener* listener);
  // When it returns, no call is under way.
  void Leave(StoreListener* listener);

  // When it returns OK, every listener has all that was committed before the call. All that came since the last one is
  // one update, so that listeners never show a state between two pages of the store's answer.
  absl::Status CatchUp();

  // The end of a change that was committed: CatchUp, with an error that says so.
  absl::Status CatchUpAfterChange();

  // Commits, and catches up. StoreAwayError as CheckReachable.
  absl::Status PutArtifacts(absl::Span<const Artifact> artifacts);

  // What whoever watches the store has noted of it: OK, or StoreAwayError while it does not answer. Never waits. Who
  // needs the store for a call looks here first, so that threads do not wait, one after the other, for a database that
  // is away.
  absl::Status CheckReachable() const;
  void NoteReachable(absl::Status status);

  // That every listener has reached. Never waits.
  int64_t generation() const { return generation_.load(); }
  ReferenceStore& store() const { return *store_; }

 private:
  void Begin() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status CatchUpLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  ReferenceStore* const store_;
  Mutex mutex_;
  std::vector<StoreListener*> listeners_ ABSL_GUARDED_BY(mutex_);
  bool begun_ ABSL_GUARDED_BY(mutex_) = false;  // generation_ is one of the store's.
  std::atomic<int64_t> generation_{0};          // Written under mutex_.
  mutable Mutex reachable_mutex_;
  absl::Status reachable_ ABSL_GUARDED_BY(reachable_mutex_);
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_STORE_FEED_H_
