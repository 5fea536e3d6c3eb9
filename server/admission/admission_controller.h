#ifndef C3PO_SERVER_ADMISSION_ADMISSION_CONTROLLER_H_
#define C3PO_SERVER_ADMISSION_ADMISSION_CONTROLLER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/admission/stage_estimates.h"

namespace c3po {

struct AdmissionLimits {
  int requests_max = 256;               // waiting or running
  int64_t cost_max = int64_t{1} << 20;  // of them together: RequestWork::Cost
  int running_max = 32;                 // that the engine runs at once
};

// Decides which requests the server takes on. A request comes in two steps: Enter, when it arrives, and Take, when its
// prompt has been tokenized and its work is known. What it holds is given back when its permit goes.
//
// Fair share: an eighth of the places, and of the cost, is kept for callers that hold none. While more than half of the
// places are taken, a caller may hold its part of the others, divided by the callers that hold any (at least 1); and so
// with the cost, of which a request counts as no more than a caller may hold. Refusals are ResourceExhausted with the
// time after which a place should be free (server/types/status_details.h). Thread-safe.
class AdmissionController {
 public:
  explicit AdmissionController(const AdmissionLimits& limits) : limits_(limits) {}

  // One request's place. Thread-safe; gives back what it holds at its end.
  class Permit {
   public:
    ~Permit();
    Permit(const Permit&) = delete;
    Permit& operator=(const Permit&) = delete;

    // Reserves what the request costs, and holds the estimate of its first result (queue, retrieval, prefill,
    // optimization, first token) against `deadline`. The queue is what the engine takes first by its order, the caller
    // with the fewest running, and not all that waits. Where the steps of the optimization are what is too much,
    // `work.steps` is cut to those that fit into four fifths of the time left, at least one. Otherwise DeadlineExceeded
    // when it could not make it on an idle server either, and ResourceExhausted when the queue is to blame. Without
    // fresh measurements nothing is refused for its deadline. Call at most once.
    absl::Status Take(RequestWork& work, absl::Time deadline);
    // The request has ended well, did this of its work, and took so long. Call at most once, after Take.
    void Observe(const RequestWork& done, const MeasuredStages& stages);
    // The request was ended at its deadline, `seconds` after the engine had begun with it. Likewise.
    void ObserveLate(double seconds);

   private:
    friend class AdmissionController;
    Permit(AdmissionController* controller, std::string caller) : controller_(controller), caller_(std::move(caller)) {}

    AdmissionController* const controller_;
    const std::string caller_;
    RequestWork work_;
    int64_t cost_ = 0;
  };

  // A place for one request of `caller`. ResourceExhausted: all are taken, or the caller's share is. The controller
  // outlives the permit.
  absl::StatusOr<std::unique_ptr<Permit>> Enter(const std::string& caller);

  int pending() const;  // Permits that are held.
  const AdmissionLimits& limits() const { return limits_; }

 private:
  absl::Status Refuse(std::string message) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Permit::Take's look at the deadline.
  absl::Status FitToDeadline(const std::string& caller, RequestWork& work, absl::Duration left) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Duration QueueEstimate(const std::string& caller) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  int64_t Charged(const RequestWork& work) const;
  absl::Status FindRoom(const Permit& permit, int64_t cost) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Leave(const Permit& permit);

  const AdmissionLimits limits_;
  mutable absl::Mutex mu_;
  int pending_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t cost_ ABSL_GUARDED_BY(mu_) = 0;
  struct Held {
    int requests = 0;
    int64_t cost = 0;
  };
  std::map<std::string, Held> by_caller_ ABSL_GUARDED_BY(mu_);  // those that hold a permit
  StageEstimates estimates_ ABSL_GUARDED_BY(mu_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_ADMISSION_ADMISSION_CONTROLLER_H_
