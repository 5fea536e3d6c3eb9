#include "client/cancellation.h"

#include <grpcpp/client_context.h>

#include <algorithm>

namespace c3po {

void Cancellation::Cancel() {
  absl::MutexLock lock(&mu_);
  cancelled_ = true;
  for (grpc::ClientContext* context : contexts_) context->TryCancel();
}

bool Cancellation::cancelled() const {
  absl::MutexLock lock(&mu_);
  return cancelled_;
}

void Cancellation::Reset() {
  absl::MutexLock lock(&mu_);
  cancelled_ = false;
}

int Cancellation::calls_in_flight() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int>(contexts_.size());
}

Cancellation::Watched::Watched(Cancellation* cancellation) : cancellation_(cancellation) {
  absl::MutexLock lock(&cancellation_->mu_);
  ++cancellation_->watchers_;
}

Cancellation::Watched::~Watched() {
  absl::MutexLock lock(&cancellation_->mu_);
  --cancellation_->watchers_;
}

bool Cancellation::watched() const {
  absl::MutexLock lock(&mu_);
  return watchers_ > 0;
}

bool Cancellation::WaitFor(absl::Duration duration) const {
  absl::MutexLock lock(&mu_);
  mu_.AwaitWithTimeout(absl::Condition(&cancelled_), duration);
  return cancelled_;
}

Cancellation::Attachment::Attachment(Cancellation* cancellation, grpc::ClientContext* context)
    : cancellation_(cancellation), context_(context) {
  if (cancellation_ == nullptr) return;
  absl::MutexLock lock(&cancellation_->mu_);
  cancellation_->contexts_.push_back(context_);
  // gRPC remembers a cancel that comes before the call has started.
  if (cancellation_->cancelled_) context_->TryCancel();
}

Cancellation::Attachment::~Attachment() {
  if (cancellation_ == nullptr) return;
  absl::MutexLock lock(&cancellation_->mu_);
  std::vector<grpc::ClientContext*>& contexts = cancellation_->contexts_;
  contexts.erase(std::find(contexts.begin(), contexts.end(), context_));
}

}  // namespace c3po
