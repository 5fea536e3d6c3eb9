#include "server/rpc/on_worker.h"

#include <atomic>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "server/pipeline/store_follower.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

// Holds itself until OnDone; its job holds it as well.
class WorkerReactor final : public grpc::ServerUnaryReactor {
 public:
  WorkerReactor(grpc::CallbackServerContext* context, const ServiceParts& parts, Metrics::Rpc rpc, WorkerJob job)
      : parts_(parts), call_(context, parts, rpc), job_(std::move(job)) {}

  void Start(size_t request_bytes, const std::shared_ptr<WorkerReactor>& self) {
    self_ = self;
    const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&] { return Submit(request_bytes, self); });
    if (!status.ok()) End(status);
  }
  void OnCancel() override { call_.Cancel(); }
  void OnDone() override { self_.reset(); }

 private:
  absl::Status Submit(size_t request_bytes, const std::shared_ptr<WorkerReactor>& self) {
    C3PO_RETURN_IF_ERROR(call_.entry());
    C3PO_RETURN_IF_ERROR(call_.HoldBytes(request_bytes));
    if (parts_.pipeline_parts.admission != nullptr) {
      C3PO_ASSIGN_OR_RETURN(permit_, parts_.pipeline_parts.admission->Enter(call_.caller()));
    }
    const auto work = [self] { return self->Work(); };
    const auto failed = [self](const absl::Status& status) { self->End(status); };
    if (!job_.needs_store) return GiveToWorker(parts_, work, failed);
    const auto next = [self, work, failed]() -> absl::Status {
      C3PO_RETURN_IF_ERROR(CheckStoreReachable(self->parts_));
      if (self->parts_.store_calls == nullptr) return GiveToWorker(self->parts_, work, failed);
      return self->parts_.store_calls->Submit(work, failed)
                 ? absl::OkStatus()
                 : absl::ResourceExhaustedError("the queue is full: too many requests wait for the store");
    };
    if (job_.min_index_generation == 0) return next();
    return OnceSeen(parts_, "min_index_generation", job_.min_index_generation, call_.Context(""), next, failed);
  }

  absl::Status Work() {
    C3PO_RETURN_IF_ERROR(call_.CheckCancelled());
    C3PO_RETURN_IF_ERROR(job_.work(call_));
    const size_t bytes = job_.answer_bytes();
    C3PO_RETURN_IF_ERROR(CheckMessageBytes(bytes));
    C3PO_RETURN_IF_ERROR(call_.HoldBytes(bytes));
    End(absl::OkStatus());
    return absl::OkStatus();
  }

  void End(const absl::Status& status) {
    if (ended_.exchange(true)) return;
    permit_ = nullptr;
    Finish(call_.End(status));
  }

  const ServiceParts& parts_;
  CallState call_;
  const WorkerJob job_;
  std::unique_ptr<AdmissionController::Permit> permit_;
  std::atomic<bool> ended_{false};
  std::shared_ptr<WorkerReactor> self_;
};

}  // namespace

absl::Status GiveToWorker(const ServiceParts& parts, std::function<absl::Status()> job,
                          std::function<void(const absl::Status&)> failed) {
  const bool taken = parts.pipeline_parts.workers->Submit(std::move(job), std::move(failed));
  return taken ? absl::OkStatus()
               : absl::ResourceExhaustedError("the queue is full: too many requests wait for a worker");
}

absl::Status OnceSeen(const ServiceParts& parts, const char* field, uint64_t generation, const CallContext& context,
                      std::function<absl::Status()> next, std::function<void(const absl::Status&)> failed) {
  if (generation == 0) return next();
  if (generation > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": ", generation, " is more than any store comes to"));
  }
  const auto ready = [&parts, field, next, failed](const absl::Status& status) {
    if (!status.ok()) return failed(Reworded(status, absl::StrCat(field, ": ", status.message())));
    const absl::Status given = GiveToWorker(parts, next, failed);
    if (!given.ok()) failed(given);
  };
  const bool is_seen =
      parts.follower->WhenSeen(static_cast<int64_t>(generation), context.deadline, context.cancelled, ready);
  return is_seen ? next() : absl::OkStatus();
}

absl::Status CheckStoreReachable(const ServiceParts& parts) {
  return parts.feed == nullptr ? absl::OkStatus() : parts.feed->CheckReachable();
}

grpc::ServerUnaryReactor* StartOnWorker(grpc::CallbackServerContext* context, const ServiceParts& parts,
                                        Metrics::Rpc rpc, size_t request_bytes, WorkerJob job) {
  const auto reactor = std::make_shared<WorkerReactor>(context, parts, rpc, std::move(job));
  reactor->Start(request_bytes, reactor);
  return reactor.get();
}

}  // namespace c3po
