#ifndef C3PO_INDEX_STORE_POSTGRES_POSTGRES_POOL_H_
#define C3PO_INDEX_STORE_POSTGRES_POSTGRES_POOL_H_

#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "index/store/postgres/postgres_connection.h"

namespace c3po {

// The sessions of a store. One that broke is replaced when the next is wanted. While the database is away, it is tried
// after 0.1 s, then after twice as long each time, up to 5 s, a little more or less so that servers do not come at
// once; who asks in between is told at once what the last try found. Thread-safe.
class PostgresPool {
 public:
  static constexpr int kSessionsMax = 4;  // Beside those that OpenOwn makes.

  PostgresPool(PostgresLocation location, const PostgresTimeouts& timeouts)
      : location_(std::move(location)), timeouts_(timeouts) {}
  // No lease is out.
  ~PostgresPool() = default;

  // A session, returned to the pool by the destructor, unless it is broken or in a transaction.
  class Lease {
   public:
    Lease(PostgresPool* pool, std::unique_ptr<PostgresConnection> session)
        : pool_(pool), session_(std::move(session)) {}
    ~Lease() {
      if (session_ != nullptr) pool_->Return(std::move(session_));
    }
    Lease(Lease&&) = default;
    Lease& operator=(Lease&&) = delete;
    PostgresConnection& operator*() const { return *session_; }
    PostgresConnection* operator->() const { return session_.get(); }

   private:
    PostgresPool* const pool_;
    std::unique_ptr<PostgresConnection> session_;
  };

  // An idle session, or a new one. Where all are in use it waits for one, at most as long as a statement takes.
  // Errors: PostgresConnection::Open's; StoreAwayError: all stay in use.
  absl::StatusOr<Lease> Take();

  // A session of the caller's own, under the same pauses.
  absl::StatusOr<std::unique_ptr<PostgresConnection>> OpenOwn();

  const PostgresLocation& location() const { return location_; }
  const PostgresTimeouts& timeouts() const { return timeouts_; }

 private:
  void Return(std::unique_ptr<PostgresConnection> session);

  const PostgresLocation location_;
  const PostgresTimeouts timeouts_;
  // Not Mutex, which has no condition.
  std::mutex mutex_;
  std::condition_variable returned_;
  // All under mutex_.
  std::vector<std::unique_ptr<PostgresConnection>> idle_;
  int in_use_ = 0;
  absl::Status last_failure_;
  absl::Duration pause_ = absl::ZeroDuration();
  absl::Time next_try_ = absl::InfinitePast();
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_POSTGRES_POOL_H_
