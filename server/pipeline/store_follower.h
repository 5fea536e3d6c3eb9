#ifndef C3PO_SERVER_PIPELINE_STORE_FOLLOWER_H_
#define C3PO_SERVER_PIPELINE_STORE_FOLLOWER_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "index/search/reference_catalog.h"
#include "index/store/store_feed.h"
#include "server/metrics/metrics.h"

namespace c3po {

// Keeps what this server holds of a store that others change too at the store's state, and lets calls wait for a state.
//
//   a thread   WaitForGeneration (announced, or seen by looking at least once a second) ▶ StoreFeed::CatchUp
//   another    ends the waits of calls; notices where the first one waits for a database that does not answer
//
// While the database is away everything goes on from memory, and whoever needs the store is told so at once
// (StoreFeed::CheckReachable). Health is not its business. A store that is nobody else's needs no following, and only
// the waits are served. Thread-safe.
class StoreFollower : private StoreListener {
 public:
  struct Options {
    absl::Duration look_every = absl::Seconds(1);     // At least, whatever is announced.
    absl::Duration pause = absl::Milliseconds(500);   // After a look that failed.
    absl::Duration silent_max = absl::Seconds(5);     // Beyond `look_every`, then the database counts as away.
    absl::Duration wait_max = absl::Seconds(10);      // That a call may wait for a generation.
    absl::Duration unshared_wait = absl::Seconds(1);  // The same where no other server can make it come.
    size_t waiters_max = 1024;
  };

  // `feed`, `catalog` and `metrics` (null: nothing is counted) outlive it. It joins the feed last: whoever waited for a
  // generation finds it with every listener that has joined before.
  static absl::StatusOr<std::unique_ptr<StoreFollower>> Start(StoreFeed* feed, const ReferenceCatalog* catalog,
                                                              Metrics* metrics, const Options& options);
  // Waits for a look under way: as long as a call of the store may take. Who waits for a generation hears Unavailable.
  ~StoreFollower() override;

  // True: everything that is held is of `generation` at least, and `ready` will not be called. Else `ready` is called
  // once, from another thread, and must not block: OK once it is; Cancelled as the flag says (null: it cannot be);
  // DeadlineExceeded; Unavailable with reason BEHIND and a pause to try again after, where `wait_max` has passed;
  // FailedPrecondition where no other server changes the store, so that it will not come; ResourceExhausted: too many
  // wait.
  using Ready = std::function<void(const absl::Status&)>;
  bool WhenSeen(int64_t generation, absl::Time deadline, std::shared_ptr<const std::atomic<bool>> cancelled,
                Ready ready);

  // What a scrape tells: generations that the store is known to have and this server has not seen, and the time since
  // the store last answered, 0 of one that is nobody else's.
  struct Figures {
    int64_t generations_behind = 0;
    absl::Duration silent_for;
  };
  Figures figures() const;

 private:
  struct Waiter {
    int64_t generation = 0;
    absl::Time deadline;  // Of the call.
    absl::Time end;       // Of its wait.
    std::shared_ptr<const std::atomic<bool>> cancelled;
    Ready ready;
  };

  StoreFollower(StoreFeed* feed, const ReferenceCatalog* catalog, Metrics* metrics, const Options& options)
      : feed_(feed), catalog_(catalog), metrics_(metrics), options_(options), shared_(feed->store().shared()) {}

  absl::Status OnUpdate(const StoreUpdate& update) override;
  void Follow();
  absl::Status Look();
  void NoteLook(const absl::Status& status);
  void Attend();
  void NoticeSilence();
  absl::Duration SilentFor() const;
  std::vector<std::pair<Ready, absl::Status>> EndedWaits(absl::Time now);  // The holder of mu_ calls it.
  absl::Status StatusOf(const Waiter& waiter, absl::Time now, bool& ended) const;

  StoreFeed* const feed_;
  const ReferenceCatalog* const catalog_;
  Metrics* const metrics_;
  const Options options_;
  const bool shared_;
  std::atomic<int64_t> seen_{0};    // By all that joined the feed before.
  std::atomic<int64_t> latest_{0};  // That the store is known to have.
  std::atomic<int64_t> answered_at_nanoseconds_{0};
  std::atomic<bool> catches_up_{false};  // The store's answers are being taken in: their time is no silence.
  std::atomic<bool> away_{false};
  // Not absl::Mutex: its timed waits are by the wall clock.
  std::mutex mu_;
  std::condition_variable news_;
  bool ending_ = false;          // Under mu_.
  std::vector<Waiter> waiters_;  // Under mu_.
  std::thread follow_, attend_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_STORE_FOLLOWER_H_
