#ifndef C3PO_SERVER_ADMISSION_RATE_LIMITER_H_
#define C3PO_SERVER_ADMISSION_RATE_LIMITER_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "index/base/steady_time.h"
#include "server/metrics/metrics.h"

namespace c3po {

// What one caller may ask for in a minute. Nothing: as the server's own default; 0: no limit.
struct CallerRates {
  std::optional<int64_t> calls_per_minute;
  std::optional<int64_t> tokens_per_minute;  // through the model: RequestWork::Cost
};

struct RateLimits {
  int64_t calls_per_minute = 0;   // 0: no limit
  int64_t tokens_per_minute = 0;  // 0: no limit
  int calls_at_once = 0;          // in flight of one caller; 0: no limit
};

// How much each caller uses, by name: calls in flight, and two token buckets (calls, and tokens through the
// model, the unit of admission: RequestWork::Cost). A bucket holds a minute's worth at most and fills evenly. A charge
// of more than a minute's worth is taken when the bucket is full; the bucket then owes the rest, and nothing more is
// taken until that is paid. By the steady clock. Thread-safe.
//
// Callers without a token are as many as there are addresses. Beyond kCallersMax those are forgotten that have no call
// in flight and were seen the longest ago.
class RateLimiter : public std::enable_shared_from_this<RateLimiter> {
 public:
  static constexpr size_t kCallersMax = 16384;
  using Clock = std::function<absl::Time()>;

  // `metrics` (null: nothing is counted) outlives it. Its calls hold it.
  static std::shared_ptr<RateLimiter> Make(const RateLimits& defaults, Metrics* metrics = nullptr,
                                           Clock clock = SteadyNow) {
    return std::shared_ptr<RateLimiter>(new RateLimiter(defaults, metrics, std::move(clock)));
  }

  // One call that was let in; in flight until it goes. Thread-safe.
  class Call {
   public:
    ~Call();
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    // Takes `tokens` of the caller's. ResourceExhausted, with the time after which there will be enough: nothing is
    // taken.
    absl::Status Charge(int64_t tokens);
    // Takes tokens that are used in any case; what is missing is owed.
    void Owe(int64_t tokens);
    // Of what Owe took, these were not used after all.
    void GiveBack(int64_t tokens);
    // ResourceExhausted, with the time after which nothing is owed any more: something is.
    absl::Status CheckPaid();
    // What the call has really used, of what Charge took: the rest is given back, and what is missing is owed. Has an
    // effect once for each charge.
    void Used(int64_t tokens);

   private:
    friend class RateLimiter;
    Call(std::shared_ptr<RateLimiter> limiter, std::string caller, const RateLimits& limits)
        : limiter_(std::move(limiter)), caller_(std::move(caller)), limits_(limits) {}

    const std::shared_ptr<RateLimiter> limiter_;
    const std::string caller_;
    const RateLimits limits_;
    int64_t charged_ = 0;  // guarded by the limiter's mutex
  };

  // A call of `caller`. ResourceExhausted: its calls in flight, or those of the minute, are used up; or it owes tokens.
  // Says when to come back. A refused call takes nothing.
  absl::StatusOr<std::shared_ptr<Call>> Admit(const std::string& caller, const CallerRates& rates);

  size_t callers() const;  // that are remembered

 private:
  struct State {
    int in_flight = 0;
    absl::Time filled;  // when both buckets were last filled
    bool fresh = true;  // never filled: the buckets are full
    // Levels of the buckets: at most a minute's worth, below 0 what is owed.
    double calls = 0, tokens = 0;
  };

  RateLimiter(const RateLimits& defaults, Metrics* metrics, Clock clock)
      : defaults_(defaults), metrics_(metrics), clock_(std::move(clock)) {}
  State& Filled(const std::string& caller, const RateLimits& limits) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void MakeRoom() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Refuse(Metrics::RefusedCall limit, absl::string_view what, absl::Duration pause) const;
  // Refuses where there are fewer than `wanted`.
  absl::Status CheckTokens(const State& state, const RateLimits& limits, double wanted) const;

  const RateLimits defaults_;
  Metrics* const metrics_;
  const Clock clock_;
  mutable absl::Mutex mu_;
  std::map<std::string, State> callers_ ABSL_GUARDED_BY(mu_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_ADMISSION_RATE_LIMITER_H_
