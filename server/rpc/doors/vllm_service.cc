#include "server/rpc/doors/vllm_service.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/rpc/doors/model_facts.h"
#include "server/rpc/doors/running_calls.h"
#include "server/rpc/doors/tokenizer_archive.h"
#include "server/rpc/doors/vllm_generate_reactor.h"
#include "server/rpc/doors/vllm_request.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/on_worker.h"
#include "server/rpc/queued_stream.h"
#include "server/rpc/wire.h"
#include "server/types/status_details.h"
#include "vllm_engine.grpc.pb.h"

namespace c3po {
namespace {

using vllm_engine::VllmEngine;
namespace gateway = ::smg::grpc::common;

constexpr size_t kArchiveChunkBytes = 64 << 10;

// Ends at once.
class RefusedStream final : public grpc::ServerWriteReactor<gateway::KvEventBatch> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

grpc::Status NoSuchOperation(absl::string_view method) {
  return grpc::Status(grpc::StatusCode::UNIMPLEMENTED, absl::StrCat(method, ": c3pod has no such operation"));
}

grpc::ServerUnaryReactor* Refuse(grpc::CallbackServerContext* context, absl::string_view method) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  reactor->Finish(NoSuchOperation(method));
  return reactor;
}

// Decodes the ids on a worker; what is embedded there or by the engine comes by a callback. It holds itself until
// OnDone. The callback holds it as well, and may come twice where an exception lost the first.
class EmbedReactor final : public grpc::ServerUnaryReactor {
 public:
  static EmbedReactor* Start(grpc::CallbackServerContext* context, const grpc::ByteBuffer& bytes,
                             grpc::ByteBuffer* response, const ServiceParts& parts) {
    const auto reactor = std::make_shared<EmbedReactor>(context, response, parts);
    reactor->self_ = reactor;
    const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&] { return reactor->Begin(bytes, reactor); });
    if (!status.ok()) reactor->End(status);
    return reactor.get();
  }
  EmbedReactor(grpc::CallbackServerContext* context, grpc::ByteBuffer* response, const ServiceParts& parts)
      : parts_(parts), call_(context, parts, Metrics::Rpc::kVllmEmbed), response_(response) {}
  void OnCancel() override { call_.Cancel(); }
  void OnDone() override { self_.reset(); }

 private:
  absl::Status Begin(const grpc::ByteBuffer& bytes, const std::shared_ptr<EmbedReactor>& self) {
    C3PO_RETURN_IF_ERROR(call_.entry());
    C3PO_RETURN_IF_ERROR(call_.HoldBytes(BytesOf(bytes)));
    C3PO_ASSIGN_OR_RETURN(const auto request, ParseRequest<vllm_engine::EmbedRequest>(bytes));
    context_ = call_.Context(request.request_id());
    C3PO_ASSIGN_OR_RETURN(ids_, IdsFromVllm(request));
    C3PO_RETURN_IF_ERROR(parts_.pipeline_parts.text->CheckLength("tokenized.input_ids", ids_.size(), 0));
    if (parts_.pipeline_parts.admission != nullptr) {
      C3PO_ASSIGN_OR_RETURN(permit_, parts_.pipeline_parts.admission->Enter(call_.caller()));
    }
    return GiveToWorker(
        parts_, [self] { return self->Decode(self); }, [self](const absl::Status& status) { self->End(status); });
  }

  absl::Status Decode(const std::shared_ptr<EmbedReactor>& self) {
    absl::StatusOr<PromptText::Prompt> prompt = parts_.pipeline_parts.text->OfTokens(ids_);
    if (!prompt.ok()) return absl::InvalidArgumentError(absl::StrCat("tokenized.input_ids", prompt.status().message()));
    const auto on_embedding = [self](absl::StatusOr<std::vector<float>> embedding) {
      self->End(CatchEscaped(ThreadKind::kWorker, [&] { return self->Answer(embedding); }));
    };
    if (prompt->text.empty()) return absl::InvalidArgumentError("tokenized.input_ids: have no text");
    return parts_.pipeline->Embed(context_, std::move(prompt->text), on_embedding);
  }

  absl::Status Answer(const absl::StatusOr<std::vector<float>>& embedding) {
    C3PO_RETURN_IF_ERROR(embedding.status());
    vllm_engine::EmbedResponse message;
    message.mutable_embedding()->Add(embedding->begin(), embedding->end());
    message.set_embedding_dim(static_cast<uint32_t>(embedding->size()));
    message.set_prompt_tokens(static_cast<uint32_t>(ids_.size()));
    C3PO_ASSIGN_OR_RETURN(*response_, ToBytes(message));
    return call_.HoldBytes(BytesOf(*response_));
  }

  void End(const absl::Status& status) {
    if (ended_.exchange(true)) return;
    permit_ = nullptr;
    Finish(call_.End(status));
  }

  const ServiceParts& parts_;
  CallState call_;
  CallContext context_;
  std::vector<int32_t> ids_;
  grpc::ByteBuffer* const response_;
  std::unique_ptr<AdmissionController::Permit> permit_;
  std::atomic<bool> ended_{false};
  std::shared_ptr<EmbedReactor> self_;
};

// Reads the files on a worker, and sends the next chunk once the transport has taken the last: of a client that does
// not read, one chunk waits. It holds itself until OnDone.
class TokenizerReactor final : public QueuedStream<grpc::ServerWriteReactor<grpc::ByteBuffer>> {
 public:
  static TokenizerReactor* Start(grpc::CallbackServerContext* context, const ServiceParts& parts,
                                 TokenizerArchive* archive) {
    const auto reactor = std::make_shared<TokenizerReactor>(context, parts, archive);
    reactor->self_ = reactor;
    const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&] { return reactor->Begin(reactor); });
    if (!status.ok()) reactor->End(status);
    return reactor.get();
  }
  TokenizerReactor(grpc::CallbackServerContext* context, const ServiceParts& parts, TokenizerArchive* archive)
      : QueuedStream(context, parts, Metrics::Rpc::kVllmGetTokenizer), parts_(parts), source_(archive) {}

  void OnWriteDone(bool ok) override {
    const std::shared_ptr<TokenizerReactor> self = self_;  // The call may end here.
    QueuedStream::OnWriteDone(ok);
    SendNext();
  }
  void OnDone() override { self_.reset(); }

 private:
  absl::Status Begin(const std::shared_ptr<TokenizerReactor>& self) {
    C3PO_RETURN_IF_ERROR(call().entry());
    (void)call().Context("");
    if (parts_.pipeline_parts.admission != nullptr) {
      C3PO_ASSIGN_OR_RETURN(permit_, parts_.pipeline_parts.admission->Enter(call().caller()));
    }
    const auto read = [self]() -> absl::Status {
      C3PO_ASSIGN_OR_RETURN(self->archive_, self->source_->Get(self->parts_.model_folder));
      self->permit_ = nullptr;
      self->SendNext();
      return absl::OkStatus();
    };
    return GiveToWorker(parts_, read, [self](const absl::Status& status) { self->End(status); });
  }

  // By one thread at a time: the worker's, then whoever says that the last chunk was taken.
  void SendNext() {
    if (const absl::Status cancelled = call().CheckCancelled(); !cancelled.ok()) return End(cancelled);
    const std::string& bytes = archive_->bytes;
    if (sent_ == bytes.size()) return;  // End has been told.
    gateway::GetTokenizerChunk message;
    message.set_data(bytes.substr(sent_, kArchiveChunkBytes));
    sent_ += message.data().size();
    if (sent_ == bytes.size()) message.set_sha256(archive_->sha256);
    const bool last = sent_ == bytes.size();
    const std::shared_ptr<TokenizerReactor> self = self_;  // The chunk may be taken before Send is back.
    Send(message);
    if (last) return End(absl::OkStatus());
    // One that was not sent is never taken.
    if (const absl::Status cancelled = call().CheckCancelled(); !cancelled.ok()) End(cancelled);
  }

  const ServiceParts& parts_;
  TokenizerArchive* const source_;
  std::shared_ptr<const TokenizerArchive::Archive> archive_;
  size_t sent_ = 0;
  std::unique_ptr<AdmissionController::Permit> permit_;
  std::shared_ptr<TokenizerReactor> self_;
};

using Methods = VllmEngine::WithRawCallbackMethod_Generate<
    VllmEngine::WithRawCallbackMethod_Embed<VllmEngine::WithRawCallbackMethod_Abort<
        VllmEngine::WithRawCallbackMethod_GetLoads<VllmEngine::WithRawCallbackMethod_GetTokenizer<
            VllmEngine::WithCallbackMethod_HealthCheck<VllmEngine::WithCallbackMethod_GetModelInfo<
                VllmEngine::WithCallbackMethod_GetServerInfo<VllmEngine::WithCallbackMethod_FlushCache<
                    VllmEngine::WithCallbackMethod_StartProfile<VllmEngine::WithCallbackMethod_StopProfile<
                        VllmEngine::WithCallbackMethod_SubscribeKvEvents<VllmEngine::Service>>>>>>>>>>>>;

class VllmService final : public Methods {
 public:
  explicit VllmService(const ServiceParts& parts) : parts_(parts), started_(SteadyNow()) {}

  grpc::ServerWriteReactor<grpc::ByteBuffer>* Generate(grpc::CallbackServerContext* context,
                                                       const grpc::ByteBuffer* request) override {
    return VllmGenerateReactor::Start(context, *request, parts_, &running_);
  }

  grpc::ServerUnaryReactor* Embed(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                  grpc::ByteBuffer* response) override {
    return EmbedReactor::Start(context, *request, response, parts_);
  }

  grpc::ServerUnaryReactor* Abort(grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
                                  grpc::ByteBuffer* response) override {
    return AtOnce(context, Metrics::Rpc::kVllmAbort, [&](CallState& call) -> absl::Status {
      C3PO_RETURN_IF_ERROR(call.HoldBytes(BytesOf(*bytes)));
      C3PO_ASSIGN_OR_RETURN(const auto request, ParseRequest<vllm_engine::AbortRequest>(*bytes));
      for (const std::string& id : request.request_ids()) running_.Abort(call.caller(), id);
      C3PO_ASSIGN_OR_RETURN(*response, ToBytes(vllm_engine::AbortResponse()));
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* HealthCheck(grpc::CallbackServerContext* context, const vllm_engine::HealthCheckRequest*,
                                        vllm_engine::HealthCheckResponse* response) override {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    // A gateway takes whoever answers for a worker, and asks it at once what its model is.
    if (parts_.entrance->state() == Entrance::State::kLoading) {
      const absl::Status loading = WithReason(absl::UnavailableError("the server is loading its model"), "LOADING");
      reactor->Finish(ToGrpcStatus(loading, context));
      return reactor;
    }
    response->set_healthy(parts_.serving());
    response->set_message(response->healthy() ? "SERVING" : "NOT_SERVING");
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const vllm_engine::GetModelInfoRequest* request,
                                         vllm_engine::GetModelInfoResponse* response) override {
    const auto fill = [this, response](CallState&) { return FillModelInfo(*response); };
    return OnWorker(context, parts_, Metrics::Rpc::kVllmGetModelInfo, *request, response, fill);
  }

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const vllm_engine::GetServerInfoRequest*,
                                          vllm_engine::GetServerInfoResponse* response) override {
    return AtOnce(context, Metrics::Rpc::kVllmGetServerInfo, [&](CallState&) {
      response->set_active_requests(static_cast<uint32_t>(parts_.pipeline_parts.admission->pending()));
      response->set_uptime_seconds(absl::ToDoubleSeconds(SteadyNow() - started_));
      response->set_server_type("c3po");
      response->set_data_parallel_size(1);
      response->set_model_dtype(absl::StrCat("torch.", parts_.pipeline_parts.model->shape().dtype));
      response->set_max_num_seqs(parts_.pipeline_parts.admission->limits().running_max);
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* GetLoads(grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
                                     grpc::ByteBuffer* response) override {
    return AtOnce(context, Metrics::Rpc::kVllmGetLoads, [&](CallState& call) -> absl::Status {
      C3PO_RETURN_IF_ERROR(call.HoldBytes(BytesOf(*bytes)));
      C3PO_ASSIGN_OR_RETURN(const auto request, ParseRequest<vllm_engine::GetLoadsRequest>(*bytes));
      C3PO_ASSIGN_OR_RETURN(*response, ToBytes(Loads(request)));
      return absl::OkStatus();
    });
  }

  grpc::ServerWriteReactor<grpc::ByteBuffer>* GetTokenizer(grpc::CallbackServerContext* context,
                                                           const grpc::ByteBuffer*) override {
    return TokenizerReactor::Start(context, parts_, &archive_);
  }

  grpc::ServerUnaryReactor* FlushCache(grpc::CallbackServerContext* context, const gateway::FlushCacheRequest*,
                                       gateway::FlushCacheResponse*) override {
    return Refuse(context, "FlushCache");
  }
  grpc::ServerUnaryReactor* StartProfile(grpc::CallbackServerContext* context, const gateway::StartProfileRequest*,
                                         gateway::ProfileResponse*) override {
    return Refuse(context, "StartProfile");
  }
  grpc::ServerUnaryReactor* StopProfile(grpc::CallbackServerContext* context, const gateway::StopProfileRequest*,
                                        gateway::ProfileResponse*) override {
    return Refuse(context, "StopProfile");
  }
  grpc::ServerWriteReactor<gateway::KvEventBatch>* SubscribeKvEvents(
      grpc::CallbackServerContext*, const gateway::SubscribeKvEventsRequest*) override {
    return new RefusedStream(NoSuchOperation("SubscribeKvEvents"));
  }

 private:
  // What takes no time, on gRPC's own thread.
  template <typename Fill>
  grpc::ServerUnaryReactor* AtOnce(grpc::CallbackServerContext* context, Metrics::Rpc rpc, const Fill& fill) {
    CallState call(context, parts_, rpc);
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&]() -> absl::Status {
      C3PO_RETURN_IF_ERROR(call.entry());
      return fill(call);
    });
    reactor->Finish(call.End(status));
    return reactor;
  }

  absl::Status FillModelInfo(vllm_engine::GetModelInfoResponse& info) const {
    const PipelineParts& parts = parts_.pipeline_parts;
    const ModelShape& shape = parts.model->shape();
    C3PO_ASSIGN_OR_RETURN(const ModelFacts facts, ModelFacts::Read(parts_.model_folder));
    info.set_model_path(parts_.model_folder);
    info.set_tokenizer_path(parts_.model_folder);
    info.set_served_model_name(shape.name);
    info.set_is_generation(true);
    info.set_max_context_length(static_cast<uint32_t>(shape.context_window));
    const int prompt_max = parts.limits.prompt_tokens_max;
    const int room = shape.context_window - 1;  // For one token of an answer.
    info.set_max_req_input_len(prompt_max > 0 ? std::min(prompt_max, room) : room);
    info.set_vocab_size(static_cast<uint32_t>(shape.vocabulary_size));
    info.set_model_type(facts.model_type);
    info.add_architectures(shape.architecture);
    info.mutable_eos_token_ids()->Add(shape.eos_token_ids.begin(), shape.eos_token_ids.end());
    info.set_pad_token_id(facts.pad_token_id);
    info.set_bos_token_id(facts.bos_token_id);
    info.set_default_sampling_params_json(SamplingDefaultsJson(parts_.default_sampling));
    return absl::OkStatus();
  }

  vllm_engine::GetLoadsResponse Loads(const vllm_engine::GetLoadsRequest& request) const {
    vllm_engine::GetLoadsResponse response;
    response.set_timestamp(absl::FormatTime(absl::RFC3339_sec, absl::Now(), absl::UTCTimeZone()));
    response.set_version(parts_.version);
    if (request.has_dp_rank() && request.dp_rank() != 0) return response;
    const EngineLoad load = parts_.pipeline_parts.engine->load();
    response.set_dp_rank_count(1);
    vllm_engine::SchedulerLoad& rank = *response.add_loads();
    rank.set_num_running_reqs(static_cast<int32_t>(load.running));
    rank.set_num_waiting_reqs(static_cast<int32_t>(load.waiting));
    rank.set_num_total_reqs(static_cast<int32_t>(load.running + load.waiting));
    rank.set_num_used_tokens(static_cast<int32_t>(load.kv_tokens_used));
    rank.set_max_total_num_tokens(static_cast<int32_t>(parts_.kv_cache_tokens));
    rank.set_token_usage(static_cast<double>(load.kv_tokens_used) / static_cast<double>(parts_.kv_cache_tokens));
    rank.set_gen_throughput(load.tokens_per_second);
    rank.set_max_running_requests(parts_.pipeline_parts.admission->limits().running_max);
    rank.set_num_waiting_uncached_tokens(static_cast<int32_t>(load.waiting_tokens));
    return response;
  }

  const ServiceParts& parts_;
  const absl::Time started_;
  RunningCalls running_;
  TokenizerArchive archive_;
};

}  // namespace

Door MakeVllmDoor(const ServiceParts& parts) {
  return {VllmEngine::service_full_name(), std::make_unique<VllmService>(parts)};
}

}  // namespace c3po
