#include "server/rpc/health_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/entrance.h"
#include "server/rpc/grpc_status.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

using ::grpc::health::v1::HealthCheckRequest;
using ::grpc::health::v1::HealthCheckResponse;

std::set<std::string> WithServer(const std::vector<std::string>& services) {
  std::set<std::string> all(services.begin(), services.end());
  all.insert("");
  return all;
}

absl::Status ShuttingDown() { return absl::UnavailableError("the server is shutting down"); }

// A call that ends at once.
class RefusedWatch final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  RefusedWatch(const absl::Status& status, grpc::CallbackServerContext* context) {
    Finish(ToGrpcStatus(status, context));
  }
  void OnDone() override { delete this; }
};

}  // namespace

// One stream. Want and End are called with the service's mutex held, which guards everything here. One write is in
// flight at most.
class HealthService::Watcher final : public grpc::ServerWriteReactor<HealthCheckResponse> {
 public:
  Watcher(HealthService* service, std::string address, bool known)
      : service_(service), address_(std::move(address)), known_(known) {}

  bool known() const { return known_; }

  void Want(Status status) {
    wanted_ = status;
    Advance();
  }

  void End(grpc::Status status) {
    if (ending_) return;
    ending_ = true;
    end_ = std::move(status);
    Advance();
  }

  void OnWriteDone(bool ok) override {
    const absl::MutexLock lock(&service_->mu_);
    writing_ = false;
    if (!ok) End(grpc::Status::CANCELLED);
    Advance();
  }

  void OnCancel() override {
    const absl::MutexLock lock(&service_->mu_);
    End(grpc::Status::CANCELLED);
  }

  void OnDone() override {
    service_->Leave(this, address_);
    delete this;
  }

 private:
  void Advance() {
    if (writing_ || finished_) return;
    if (ending_) {
      finished_ = true;
      Finish(end_);
    } else if (wanted_ != sent_) {
      writing_ = true;
      sent_ = wanted_;
      message_.set_status(sent_);
      StartWrite(&message_);
    }
  }

  HealthService* const service_;
  const std::string address_;
  const bool known_;  // the service that is watched exists
  Status wanted_ = HealthCheckResponse::UNKNOWN, sent_ = HealthCheckResponse::UNKNOWN;
  HealthCheckResponse message_;
  bool writing_ = false, ending_ = false, finished_ = false;
  grpc::Status end_;
};

HealthService::HealthService(const std::vector<std::string>& services, const WatchLimits& limits, Metrics* metrics)
    : services_(WithServer(services)), limits_(limits), metrics_(metrics) {}

HealthService::Status HealthService::StatusOf(bool known) const {
  if (!known) return HealthCheckResponse::SERVICE_UNKNOWN;
  return serving_ ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

void HealthService::SetServing(bool serving) {
  const absl::MutexLock lock(&mu_);
  serving_ = serving;
  for (Watcher* watcher : watchers_) watcher->Want(StatusOf(watcher->known()));
}

bool HealthService::serving() {
  const absl::MutexLock lock(&mu_);
  return serving_;
}

void HealthService::EndWatches() {
  const absl::MutexLock lock(&mu_);
  ended_ = true;
  for (Watcher* watcher : watchers_) watcher->End(ToGrpcStatus(ShuttingDown(), nullptr));
}

grpc::ServerUnaryReactor* HealthService::Check(grpc::CallbackServerContext* context, const HealthCheckRequest* request,
                                               HealthCheckResponse* response) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  if (services_.count(request->service()) == 0) {
    reactor->Finish(ToGrpcStatus(absl::NotFoundError("service: is none of this server's"), context));
    return reactor;
  }
  {
    const absl::MutexLock lock(&mu_);
    response->set_status(StatusOf(/*known=*/true));
  }
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

absl::Status HealthService::CheckRoom(const std::string& address) const {
  const auto refuse = [this](Metrics::RefusedWatch limit, absl::string_view flag) {
    if (metrics_ != nullptr) metrics_->CountRefusedWatch(limit);
    const absl::Status status =
        absl::ResourceExhaustedError(absl::StrCat("too many Watch streams: as many as ", flag, " are open"));
    return WithRetryAfter(WithReason(status, kRateReason), absl::Seconds(5));
  };
  if (ended_) return ShuttingDown();
  if (watchers_.size() >= static_cast<size_t>(limits_.all_max))
    return refuse(Metrics::RefusedWatch::kAll, "--watches-max");
  const auto found = by_address_.find(address);
  const int open = found == by_address_.end() ? 0 : found->second;
  if (open >= limits_.per_address_max) return refuse(Metrics::RefusedWatch::kAddress, "--address-watches-max");
  return absl::OkStatus();
}

grpc::ServerWriteReactor<HealthCheckResponse>* HealthService::Watch(grpc::CallbackServerContext* context,
                                                                    const HealthCheckRequest* request) {
  std::string address = AddressOfPeer(context->peer());
  const bool known = services_.count(request->service()) > 0;
  const absl::MutexLock lock(&mu_);
  if (const absl::Status room = CheckRoom(address); !room.ok()) return new RefusedWatch(room, context);
  ++by_address_[address];
  auto* watcher = new Watcher(this, std::move(address), known);
  watchers_.insert(watcher);
  if (metrics_ != nullptr) metrics_->SetHealthWatches(static_cast<int64_t>(watchers_.size()));
  watcher->Want(StatusOf(known));
  return watcher;
}

void HealthService::Leave(Watcher* watcher, const std::string& address) {
  const absl::MutexLock lock(&mu_);
  watchers_.erase(watcher);
  if (const auto found = by_address_.find(address); --found->second == 0) by_address_.erase(found);
  if (metrics_ != nullptr) metrics_->SetHealthWatches(static_cast<int64_t>(watchers_.size()));
}

}  // namespace c3po
