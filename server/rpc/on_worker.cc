#include "server/rpc/on_worker.h"

#include <atomic>
#include <memory>
#include <utility>

#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"

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
    return GiveToWorker(
        parts_, [self] { return self->Work(); }, [self](const absl::Status& status) { self->End(status); });
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

grpc::ServerUnaryReactor* StartOnWorker(grpc::CallbackServerContext* context, const ServiceParts& parts,
                                        Metrics::Rpc rpc, size_t request_bytes, WorkerJob job) {
  const auto reactor = std::make_shared<WorkerReactor>(context, parts, rpc, std::move(job));
  reactor->Start(request_bytes, reactor);
  return reactor.get();
}

}  // namespace c3po
