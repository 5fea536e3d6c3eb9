#include "server/rpc/doors/kserve_reactors.h"

#include <utility>

#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/rpc/call_span.h"
#include "server/rpc/on_worker.h"
#include "server/rpc/profiles.h"
#include "server/rpc/wire.h"

namespace c3po {
namespace {

// What one request of a stream asks wrongly; anything else concerns the caller or the server.
bool IsOfTheRequest(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsNotFound(status) || absl::IsPermissionDenied(status) ||
         absl::IsFailedPrecondition(status);
}

absl::StatusOr<KserveQuestion> Read(const inference::ModelInferRequest& request, const ServiceParts& parts) {
  return QuestionFromKserve(request, parts.pipeline_parts.model->shape().name, parts.default_sampling, DrawSeed());
}

absl::Status Ask(KserveQuestion question, const CallContext& context, const ServiceParts& parts, CallState& call,
                 std::shared_ptr<GenerationListener> listener) {
  C3PO_ASSIGN_OR_RETURN(question.call.optimization, parts.profiles->Resolve(question.optimization, call.collections()));
  call.NoteCollection(question.call.optimization.collection);
  question.call.context = context;
  return parts.pipeline->Generate(std::move(question.call), std::move(listener));
}

}  // namespace

KserveInferReactor::KserveInferReactor(grpc::CallbackServerContext* context, grpc::ByteBuffer* response,
                                       const ServiceParts& parts)
    : parts_(parts), call_(context, parts, Metrics::Rpc::kKserveModelInfer), response_(response) {}

KserveInferReactor* KserveInferReactor::Start(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                                              grpc::ByteBuffer* response, const ServiceParts& parts) {
  auto reactor = std::shared_ptr<KserveInferReactor>(new KserveInferReactor(context, response, parts));
  reactor->self_ = reactor;
  const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&] { return reactor->Submit(request, reactor); });
  if (!status.ok()) reactor->OnDone(status, CallSummary());
  return reactor.get();
}

absl::Status KserveInferReactor::Submit(const grpc::ByteBuffer& bytes,
                                        const std::shared_ptr<KserveInferReactor>& self) {
  C3PO_RETURN_IF_ERROR(call_.entry());
  C3PO_RETURN_IF_ERROR(call_.HoldBytes(BytesOf(bytes)));
  C3PO_RETURN_IF_ERROR(ParseInto(bytes, request_));
  const CallContext context = call_.Context(request_.id());
  C3PO_ASSIGN_OR_RETURN(const KserveQuestion question, Read(request_, parts_));
  const auto next = [self, question, context] { return Ask(question, context, self->parts_, self->call_, self); };
  const auto failed = [self](const absl::Status& status) { self->OnDone(status, CallSummary()); };
  return OnceSeen(parts_, kOptimizationsGeneration, question.optimization.min_index_generation(), context, next,
                  failed);
}

void KserveInferReactor::OnOptimization(const OptimizationReport& report) {
  call_.NoteReport(report);
  report_ = report;
}

void KserveInferReactor::OnChunk(TextChunk chunk) {
  if (!held_.ok()) return;
  held_ = call_.HoldBytes(chunk.text.size());
  if (!held_.ok()) return call_.Cancel();
  text_ += chunk.text;
}

absl::Status KserveInferReactor::Fill(const CallSummary& summary) {
  inference::ModelInferResponse response = TextToKserve(request_, text_);
  AddEnd(summary, report_, response);
  C3PO_ASSIGN_OR_RETURN(*response_, ToBytes(response));
  return call_.HoldBytes(BytesOf(*response_));
}

void KserveInferReactor::OnDone(const absl::Status& status, const CallSummary& summary) {
  if (ended_.exchange(true)) return;
  call_.NoteUsage(summary.usage, summary.cost);
  absl::Status end = held_.ok() ? status : held_;
  if (end.ok()) end = CatchEscaped(ThreadKind::kEngine, [&] { return Fill(summary); });
  Finish(call_.End(InTheirWords(end, KserveFieldNames())));
}

// Of one request of a stream. Holds the stream until the pipeline lets go of it.
class KserveStreamReactor::Listener final : public GenerationListener {
 public:
  Listener(std::shared_ptr<KserveStreamReactor> stream, inference::ModelInferRequest request, bool in_pieces,
           std::shared_ptr<RateLimiter::Call> rates, std::shared_ptr<CallTrace> trace)
      : stream_(std::move(stream)),
        request_(std::move(request)),
        in_pieces_(in_pieces),
        rates_(std::move(rates)),
        trace_(std::move(trace)) {}

  void OnOptimization(const OptimizationReport& report) override {
    stream_->call().NoteReport(report);
    report_ = report;
  }

  void OnChunk(TextChunk chunk) override {
    if (chunk.text.empty()) return;
    if (in_pieces_) return Send(TextToKserve(request_, chunk.text));
    if (absl::Status held = stream_->call().HoldBytes(chunk.text.size()); !held.ok()) {
      stream_->SetFinalStatus(held);
      return stream_->call().Cancel();
    }
    text_ += chunk.text;
  }

  void OnScores(std::vector<ContinuationScore>) override {}

  void OnDone(const absl::Status& status, const CallSummary& summary) override {
    rates_->Used(summary.cost);
    stream_->call().ReleaseBytes(text_.size());
    absl::Status end = status;
    if (end.ok()) end = CatchEscapedIn(ThreadKind::kEngine, [&] { SendEnd(summary); });
    EndCallSpan(trace_.get(), Metrics::Rpc::kKserveModelStreamInfer, end);
    stream_->Answered(end);
  }

  void SendError(absl::string_view message) {
    inference::ModelStreamInferResponse response;
    response.set_error_message(std::string(message));
    response.mutable_infer_response()->set_id(request_.id());
    response.mutable_infer_response()->set_model_name(request_.model_name());
    stream_->Send(response);
  }

 private:
  void Send(inference::ModelInferResponse answer) {
    inference::ModelStreamInferResponse response;
    *response.mutable_infer_response() = std::move(answer);
    stream_->Send(response);
  }

  void SendEnd(const CallSummary& summary) {
    inference::ModelInferResponse response = TextToKserve(request_, text_);
    AddEnd(summary, report_, response);
    (*response.mutable_parameters())["triton_final_response"].set_bool_param(true);
    Send(std::move(response));
  }

  const std::shared_ptr<KserveStreamReactor> stream_;
  const inference::ModelInferRequest request_;
  const bool in_pieces_;
  const std::shared_ptr<RateLimiter::Call> rates_;
  const std::shared_ptr<CallTrace> trace_;  // of the request; null: not traced
  OptimizationReport report_;
  std::string text_;  // not in pieces
};

KserveStreamReactor::KserveStreamReactor(grpc::CallbackServerContext* context, const ServiceParts& parts)
    : QueuedStream(context, parts, Metrics::Rpc::kKserveModelStreamInfer), parts_(parts), context_(context) {}

KserveStreamReactor* KserveStreamReactor::Start(grpc::CallbackServerContext* context, const ServiceParts& parts) {
  const auto reactor = std::make_shared<KserveStreamReactor>(context, parts);
  reactor->self_ = reactor;
  const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&] { return reactor->Begin(); });
  if (!status.ok()) reactor->End(status);
  return reactor.get();
}

absl::Status KserveStreamReactor::Begin() {
  C3PO_RETURN_IF_ERROR(call().entry());
  (void)call().Context("");
  StartRead(&incoming_);
  if (call().grant() != nullptr) {
    hold_ = call().grant()->Watch([weak = weak_from_this()] {
      if (const auto self = weak.lock()) self->OnRevoked();
    });
  }
  return absl::OkStatus();
}

// A stream that waits for its client's next request would not notice that it is cancelled.
void KserveStreamReactor::OnRevoked() {
  const MutexLock lock(mutex_);
  revoked_ = true;
  call().Cancel();
  if (!busy_) End(RevokedError());
}

void KserveStreamReactor::OnReadDone(bool ok) {
  const auto self = shared_from_this();  // The call may end here.
  {
    const MutexLock lock(mutex_);
    if (revoked_) return;
    if (ok) busy_ = true;
  }
  if (!ok) return End(call().CheckCancelled());  // The client has no more requests, or is gone.
  const auto submit = [this] { return Submit(); };
  if (const absl::Status status = CatchEscaped(ThreadKind::kTransport, submit); !status.ok()) Answered(status);
}

absl::Status KserveStreamReactor::Submit() {
  const size_t bytes = BytesOf(incoming_);
  C3PO_RETURN_IF_ERROR(call().HoldBytes(bytes));
  inference::ModelInferRequest request;
  const absl::Status parsed = ParseInto(incoming_, request);
  incoming_.Clear();
  call().ReleaseBytes(bytes);
  C3PO_RETURN_IF_ERROR(parsed);
  std::shared_ptr<RateLimiter::Call> rates = call().rates();
  if (std::exchange(began_, true)) {  // Each request counts as a call of its caller's.
    std::string name;
    C3PO_ASSIGN_OR_RETURN(Entrance::Admission admission,
                          parts_.entrance->Admit(OriginOf(*context_), Metrics::Rpc::kKserveModelStreamInfer, name));
    rates = std::move(admission.call);
  }
  CallContext context = call().Context(request.id());
  context.arrival = SteadyNow();
  context.rates = rates;
  if (context.trace != nullptr) context.trace = context.trace->BeginRequest("request", context.arrival);
  const std::shared_ptr<CallTrace> trace = context.trace;
  absl::StatusOr<KserveQuestion> question = Read(request, parts_);
  const bool in_pieces = question.ok() && question->stream;
  const auto listener =
      std::make_shared<Listener>(shared_from_this(), std::move(request), in_pieces, std::move(rates), trace);
  absl::Status status = question.status();
  const auto failed = [self = shared_from_this(), listener, trace](const absl::Status& why) {
    EndCallSpan(trace.get(), Metrics::Rpc::kKserveModelStreamInfer, why);
    if (!IsOfTheRequest(why)) return self->Answered(why);
    listener->SendError(InTheirWords(why, KserveFieldNames()).message());
    self->Answered(absl::OkStatus());
  };
  if (status.ok()) {
    const auto next = [self = shared_from_this(), listener, context, asked = *question] {
      return Ask(asked, context, self->parts_, self->call(), listener);
    };
    status = OnceSeen(parts_, kOptimizationsGeneration, question->optimization.min_index_generation(), context, next,
                      failed);
  }
  if (!status.ok()) failed(status);
  return absl::OkStatus();
}

void KserveStreamReactor::Answered(const absl::Status& status) {
  {
    const MutexLock lock(mutex_);
    busy_ = false;
    if (revoked_) return End(RevokedError());
  }
  if (!status.ok()) return End(InTheirWords(status, KserveFieldNames()), /*drop_queue=*/true);
  StartRead(&incoming_);
}

}  // namespace c3po
