#include "index/store/postgres/postgres_pool.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "index/base/store_away.h"

namespace c3po {
namespace {

constexpr absl::Duration kPauseMin = absl::Milliseconds(100), kPauseMax = absl::Seconds(5);

double AboutOne() {
  thread_local std::minstd_rand random(std::random_device{}());
  return std::uniform_real_distribution<double>(0.8, 1.2)(random);
}

}  // namespace

absl::StatusOr<PostgresPool::Lease> PostgresPool::Take() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto is_free = [this] { return in_use_ < kSessionsMax; };
    if (!returned_.wait_for(lock, absl::ToChronoNanoseconds(timeouts_.statement), is_free)) {
      return StoreAwayError(absl::StrCat("store ", location_.name, ": all ", kSessionsMax, " sessions stay in use"));
    }
    ++in_use_;
    while (!idle_.empty()) {
      std::unique_ptr<PostgresConnection> session = std::move(idle_.back());
      idle_.pop_back();
      if (session->IsIdle()) return Lease(this, std::move(session));
    }
  }
  absl::StatusOr<std::unique_ptr<PostgresConnection>> session = OpenOwn();
  if (session.ok()) return Lease(this, *std::move(session));
  const std::lock_guard<std::mutex> lock(mutex_);
  --in_use_;
  returned_.notify_one();
  return session.status();
}

absl::StatusOr<std::unique_ptr<PostgresConnection>> PostgresPool::OpenOwn() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (SteadyNow() < next_try_) return last_failure_;
  }
  absl::StatusOr<std::unique_ptr<PostgresConnection>> session = PostgresConnection::Open(location_, timeouts_);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (session.ok()) {
    pause_ = absl::ZeroDuration();
    next_try_ = absl::InfinitePast();
    return session;
  }
  // Others that tried at the same time count as one.
  if (SteadyNow() >= next_try_) pause_ = std::clamp(2 * pause_, kPauseMin, kPauseMax);
  next_try_ = SteadyNow() + AboutOne() * pause_;
  last_failure_ = session.status();
  return session;
}

void PostgresPool::Return(std::unique_ptr<PostgresConnection> session) {
  const bool reusable = session->IsIdle();
  std::unique_ptr<PostgresConnection> ended;  // Outside of the lock.
  const std::lock_guard<std::mutex> lock(mutex_);
  --in_use_;
  (reusable ? idle_.emplace_back() : ended) = std::move(session);
  returned_.notify_one();
}

}  // namespace c3po
