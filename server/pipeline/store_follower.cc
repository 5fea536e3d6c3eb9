#include "server/pipeline/store_follower.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "index/base/store_away.h"
#include "server/metrics/logging.h"
#include "server/pipeline/reference_gauges.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

constexpr absl::Duration kAttendEvery = absl::Milliseconds(20);       // While calls wait.
constexpr absl::Duration kAttendIdleEvery = absl::Milliseconds(200);  // While none does.
constexpr absl::Duration kRetryBehindAfter = absl::Seconds(1);

}  // namespace

absl::StatusOr<std::unique_ptr<StoreFollower>> StoreFollower::Start(StoreFeed* feed, const ReferenceCatalog* catalog,
                                                                    Metrics* metrics, const Options& options) {
  std::unique_ptr<StoreFollower> follower(new StoreFollower(feed, catalog, metrics, options));
  follower->answered_at_nanoseconds_ = absl::ToUnixNanos(SteadyNow());
  C3PO_RETURN_IF_ERROR(feed->Join(follower.get()));
  follower->latest_ = follower->seen_.load();
  if (metrics != nullptr) {
    metrics->WatchFollower([self = follower.get()] {
      const Figures now = self->figures();
      return Metrics::FollowerFigures{now.generations_behind, absl::ToDoubleSeconds(now.silent_for)};
    });
  }
  follower->attend_ = std::thread([self = follower.get()] { self->Attend(); });
  if (follower->shared_) follower->follow_ = std::thread([self = follower.get()] { self->Follow(); });
  return follower;
}

StoreFollower::~StoreFollower() {
  if (metrics_ != nullptr) metrics_->WatchFollower(nullptr);
  {
    const std::lock_guard<std::mutex> lock(mu_);
    ending_ = true;
  }
  news_.notify_all();
  if (follow_.joinable()) follow_.join();
  if (attend_.joinable()) attend_.join();
  feed_->Leave(this);
  for (const Waiter& waiter : waiters_) waiter.ready(absl::UnavailableError("the server is shutting down"));
}

absl::Status StoreFollower::OnUpdate(const StoreUpdate& update) {
  seen_ = update.generation;
  ReportReferences(*catalog_, metrics_);
  news_.notify_all();
  return absl::OkStatus();
}

void StoreFollower::Follow() {
  bool failed = false;
  while (true) {
    const absl::Status status = CatchEscaped(ThreadKind::kPeriodic, [this] { return Look(); });
    // One connection that was cut is no database that is away: the next look opens another.
    const bool looks_again = !status.ok() && !failed;
    failed = !status.ok();
    if (!looks_again) NoteLook(status);
    std::unique_lock<std::mutex> lock(mu_);
    if (failed && !looks_again)
      news_.wait_for(lock, absl::ToChronoNanoseconds(options_.pause), [this] { return ending_; });
    if (ending_) return;
  }
}

absl::Status StoreFollower::Look() {
  C3PO_ASSIGN_OR_RETURN(const int64_t latest,
                        feed_->store().WaitForGeneration(feed_->generation(), options_.look_every));
  latest_ = latest;
  answered_at_nanoseconds_ = absl::ToUnixNanos(SteadyNow());
  if (latest == feed_->generation()) return absl::OkStatus();
  catches_up_ = true;
  const absl::Status caught_up = feed_->CatchUp();
  catches_up_ = false;
  return caught_up;
}

void StoreFollower::NoteLook(const absl::Status& status) {
  if (status.ok()) {
    answered_at_nanoseconds_ = absl::ToUnixNanos(SteadyNow());
    feed_->NoteReachable(absl::OkStatus());
    if (away_.exchange(false)) Log(LogLevel::kInfo, "store_followed", "", {{"generation", feed_->generation()}});
    return;
  }
  if (IsStoreAway(status)) feed_->NoteReachable(status);
  if (!away_.exchange(true)) {
    Log(LogLevel::kError, "store_not_followed", "",
        {{"generation", feed_->generation()}, {"reason", status.message()}});
  }
}

absl::Duration StoreFollower::SilentFor() const {
  if (!shared_ || catches_up_.load()) return absl::ZeroDuration();
  return std::max(absl::ZeroDuration(), SteadyNow() - absl::FromUnixNanos(answered_at_nanoseconds_.load()));
}

// A database that is paused keeps a look waiting longer than calls should wait for it.
void StoreFollower::NoticeSilence() {
  const absl::Duration silent = SilentFor();
  if (silent <= options_.look_every + options_.silent_max || !feed_->CheckReachable().ok()) return;
  NoteLook(StoreAwayError(absl::StrCat("store ", feed_->store().location(), ": has not answered for ",
                                       absl::ToInt64Seconds(silent), " seconds")));
}

bool StoreFollower::WhenSeen(int64_t generation, absl::Time deadline,
                             std::shared_ptr<const std::atomic<bool>> cancelled, Ready ready) {
  if (generation <= seen_.load()) return true;
  const absl::Time end = SteadyNow() + (shared_ ? options_.wait_max : options_.unshared_wait);
  {
    const std::lock_guard<std::mutex> lock(mu_);
    if (waiters_.size() < options_.waiters_max && !ending_) {
      waiters_.push_back({generation, deadline, end, std::move(cancelled), std::move(ready)});
      news_.notify_all();
      return false;
    }
  }
  ready(absl::ResourceExhaustedError("too many calls wait for a generation of the references"));
  return false;
}

void StoreFollower::Attend() {
  while (true) {
    std::vector<std::pair<Ready, absl::Status>> ended;
    {
      std::unique_lock<std::mutex> lock(mu_);
      if (ending_) return;
      news_.wait_for(lock, absl::ToChronoNanoseconds(waiters_.empty() ? kAttendIdleEvery : kAttendEvery));
      ended = EndedWaits(SteadyNow());
    }
    for (const auto& [ready, status] : ended) {
      (void)CatchEscapedIn(ThreadKind::kPeriodic, [ready = &ready, status = &status] { (*ready)(*status); });
    }
    NoticeSilence();
  }
}

std::vector<std::pair<StoreFollower::Ready, absl::Status>> StoreFollower::EndedWaits(absl::Time now) {
  std::vector<std::pair<Ready, absl::Status>> all;
  std::vector<Waiter> left;
  for (Waiter& waiter : waiters_) {
    bool ended = true;
    const absl::Status status = StatusOf(waiter, now, ended);
    if (ended) {
      all.emplace_back(std::move(waiter.ready), status);
    } else {
      left.push_back(std::move(waiter));
    }
  }
  waiters_ = std::move(left);
  return all;
}

absl::Status StoreFollower::StatusOf(const Waiter& waiter, absl::Time now, bool& ended) const {
  const int64_t seen = seen_.load();
  if (seen >= waiter.generation) return absl::OkStatus();
  if (waiter.cancelled != nullptr && waiter.cancelled->load())
    return absl::CancelledError("the client cancelled the request");
  const std::string where = absl::StrCat("this server has seen generation ", seen, ", not ", waiter.generation);
  if (now >= waiter.deadline) return absl::DeadlineExceededError(absl::StrCat(where, ", before the deadline"));
  ended = now >= waiter.end;
  if (!ended) return absl::OkStatus();
  if (!shared_) {
    return absl::FailedPreconditionError(absl::StrCat(
        where, "; nobody else changes its store, so that this is of another one, or of a state that was restored"));
  }
  const absl::Status reachable = feed_->CheckReachable();
  return WithRetryAfter(
      WithReason(absl::UnavailableError(reachable.ok() ? where : absl::StrCat(where, ": ", reachable.message())),
                 kBehindReason),
      kRetryBehindAfter);
}

StoreFollower::Figures StoreFollower::figures() const {
  return {std::max<int64_t>(0, latest_.load() - seen_.load()), SilentFor()};
}

}  // namespace c3po
