#include "server/rpc/add_references_reactor.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/types/reference_validation.h"
#include "server/rpc/convert.h"
#include "server/rpc/on_worker.h"
#include "server/rpc/wire.h"

namespace c3po {

AddReferencesReactor* AddReferencesReactor::Start(grpc::CallbackServerContext* context, const ServiceParts& parts) {
  const auto reactor = std::make_shared<AddReferencesReactor>(context, parts);
  reactor->self_ = reactor;
  const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&] { return reactor->Begin(); });
  if (!status.ok()) reactor->End(status);
  return reactor.get();
}

AddReferencesReactor::AddReferencesReactor(grpc::CallbackServerContext* context, const ServiceParts& parts)
    : QueuedStream(context, parts, Metrics::Rpc::kReferencesAdd), parts_(parts) {}

absl::Status AddReferencesReactor::Begin() {
  C3PO_RETURN_IF_ERROR(call().entry());
  C3PO_RETURN_IF_ERROR(CheckStoreReachable(parts_));
  C3PO_ASSIGN_OR_RETURN(place_, parts_.import_places->TakePlace(call().caller()));
  StartRead(&incoming_);
  if (call().grant() != nullptr) {
    hold_ = call().grant()->Watch([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->OnRevoked();
    });
  }
  return absl::OkStatus();
}

// A stream that waits for its client's next sample would not notice that it is cancelled.
void AddReferencesReactor::OnRevoked() {
  const MutexLock lock(reading_);
  revoked_ = true;
  call().Cancel();
  SetFinalStatus(RevokedError());
  if (import_) {
    import_->Close();
  } else {
    End(RevokedError());
  }
}

absl::Status AddReferencesReactor::BeginImport(const v1::AddReferencesRequest& first) {
  collection_ = first.collection().empty() ? "default" : first.collection();
  C3PO_RETURN_IF_ERROR(ValidateCollectionName(collection_));
  call().NoteCollection(collection_);
  C3PO_RETURN_IF_ERROR(call().collections().CheckWrite("collection", collection_));
  const auto self = shared_from_this();
  ReferenceImport::Events events;
  events.on_room = [self] { self->StartRead(&self->incoming_); };
  events.on_batch = [self](std::vector<SampleVerdict> verdicts) { self->OnBatch(std::move(verdicts)); };
  events.on_end = [self](const absl::Status& status) { self->OnImportEnd(status); };
  import_ = ReferenceImport::Start(parts_.pipeline_parts, ImportSettings{collection_, first.replace(), call().rates()},
                                   parts_.imports, call().cancelled(), std::move(events));
  return absl::OkStatus();
}

// What was committed before a failure is stored.
void AddReferencesReactor::OnImportEnd(const absl::Status& status) {
  const uint64_t added = progress_.successful() + progress_.failed();
  const auto audit = [&] { call().Audit("add", {{"added", added}, {"replaced", replaced_}}); };
  if (added + replaced_ > 0) (void)CatchEscapedIn(ThreadKind::kWorker, audit);  // The call ends all the same.
  End(status);
}

absl::Status AddReferencesReactor::TakeSample() {
  C3PO_ASSIGN_OR_RETURN(const v1::AddReferencesRequest request, ParseRequest<v1::AddReferencesRequest>(incoming_));
  if (!import_) {
    C3PO_RETURN_IF_ERROR(BeginImport(request));
  } else if (!request.collection().empty() && request.collection() != collection_) {
    return absl::InvalidArgumentError(
        absl::StrCat("collection: the stream began with \"", collection_, "\", and cannot change"));
  }
  const bool room = import_->Push(request.sequence(), SampleFromProto(request.sample()));
  if (room) StartRead(&incoming_);
  return absl::OkStatus();
}

void AddReferencesReactor::OnReadDone(bool ok) {
  const MutexLock lock(reading_);
  if (!revoked_) TakeRead(ok);
}

void AddReferencesReactor::TakeRead(bool ok) {
  if (ok) {
    const auto take = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_) { return TakeSample(); };
    const absl::Status status = CatchEscaped(ThreadKind::kTransport, take);
    if (status.ok()) return;
    if (!import_) return End(status);
    call().Cancel();  // The import ends with what it has committed, then this status.
    SetFinalStatus(status);
  }
  if (import_) {
    import_->Close();
  } else {
    End(absl::OkStatus());
  }
}

void AddReferencesReactor::OnBatch(std::vector<SampleVerdict> verdicts) {
  v1::AddReferencesResponse response;
  for (const SampleVerdict& verdict : verdicts) {
    progress_.set_received(progress_.received() + 1);
    replaced_ += verdict.replaced_ids.size();
    switch (verdict.outcome) {
      case SampleOutcome::kSuccessful:
        progress_.set_successful(progress_.successful() + 1);
        break;
      case SampleOutcome::kFailed:
        progress_.set_failed(progress_.failed() + 1);
        break;
      case SampleOutcome::kMalformed:
        progress_.set_malformed(progress_.malformed() + 1);
        break;
      case SampleOutcome::kDuplicate:
        progress_.set_duplicate(progress_.duplicate() + 1);
        break;
    }
    *response.add_verdicts() = VerdictToProto(verdict);
  }
  *response.mutable_progress() = progress_;
  response.set_index_generation(static_cast<uint64_t>(parts_.pipeline_parts.catalog->generation()));
  Send(response);
}

// The import goes first: its events hold this.
void AddReferencesReactor::OnDone() {
  std::shared_ptr<ReferenceImport> import;
  {
    const MutexLock lock(reading_);
    import.swap(import_);
  }
  import.reset();
  self_.reset();
}

}  // namespace c3po
