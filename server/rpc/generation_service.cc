#include "server/rpc/generation_service.h"

#include <atomic>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "server/rpc/convert.h"
#include "server/rpc/on_worker.h"
#include "server/rpc/profiles.h"
#include "server/rpc/queued_stream.h"
#include "server/rpc/wire.h"

namespace c3po {
namespace {

absl::StatusOr<Priority> PriorityOf(v1::Priority priority, const CallState& call) {
  switch (priority) {
    case v1::PRIORITY_LOW:
      return Priority::kLow;
    case v1::PRIORITY_UNSPECIFIED:
    case v1::PRIORITY_NORMAL:
      return Priority::kNormal;
    case v1::PRIORITY_HIGH:
      if (call.administers()) return Priority::kHigh;
      return absl::PermissionDeniedError("priority: HIGH needs the role administer");
    default:
      return absl::InvalidArgumentError(absl::StrCat("priority: ", static_cast<int>(priority), " is unknown"));
  }
}

// Choices are scored, not sampled.
absl::Status CheckChoiceSampling(const v1::SamplingOptions& sampling) {
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  sampling.GetReflection()->ListFields(sampling, &fields);
  if (fields.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("sampling.", fields.front()->name(), ": must not be set beside choices, which are not sampled"));
}

// Lives until gRPC is done with it and the pipeline has let go of it, whichever is later: it holds itself until OnDone.
class GenerateReactor final : public QueuedStream<grpc::ServerWriteReactor<grpc::ByteBuffer>>,
                              public GenerationListener {
 public:
  static GenerateReactor* Start(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                                const ServiceParts& parts) {
    auto reactor = std::shared_ptr<GenerateReactor>(new GenerateReactor(context, parts));
    reactor->self_ = reactor;
    const auto submit = [&] { return reactor->Begin(request, reactor); };
    const absl::Status status = CatchEscaped(ThreadKind::kTransport, submit);
    if (!status.ok()) reactor->OnDone(status, CallSummary());
    return reactor.get();
  }

  void OnOptimization(const OptimizationReport& report) override {
    call().NoteReport(report);
    v1::GenerateResponse message;
    *message.mutable_optimization() = ReportToProto(report);
    Send(message);
  }

  void OnRoutes(RoutedExperts prompt) override {
    for (v1::RoutedExperts& piece : RoutePieces(prompt)) {
      v1::GenerateResponse message;
      *message.mutable_routed_experts() = std::move(piece);
      Send(message);
    }
  }

  void OnChunk(TextChunk chunk) override {
    v1::GenerateResponse message;
    *message.mutable_delta() = ChunkToProto(chunk, *parts_.pipeline_parts.text->tokenizer(), with_logprobs_);
    Send(message);
  }

  void OnScores(std::vector<ContinuationScore> scores) override { scores_ = std::move(scores); }

  void OnDone(const absl::Status& status, const CallSummary& summary) override {
    call().NoteUsage(summary.usage, summary.cost);
    absl::Status end = status;
    if (status.ok()) end = CatchEscapedIn(ThreadKind::kEngine, [&] { SendSummary(summary); });
    End(end, /*drop_queue=*/!end.ok());
  }

  void OnDone() override { self_.reset(); }

 private:
  GenerateReactor(grpc::CallbackServerContext* context, const ServiceParts& parts)
      : QueuedStream(context, parts, Metrics::Rpc::kGenerate), parts_(parts) {}

  void SendSummary(const CallSummary& summary) {
    v1::GenerateResponse message;
    *message.mutable_summary() = SummaryToProto(summary, call().request_id(), parts_.version);
    for (const ContinuationScore& score : scores_)
      *message.mutable_summary()->add_choice_scores() = ScoreToProto(score);
    Send(message);
  }

  absl::Status Begin(const grpc::ByteBuffer& bytes, const std::shared_ptr<GenerateReactor>& self) {
    C3PO_RETURN_IF_ERROR(call().entry());
    C3PO_RETURN_IF_ERROR(call().HoldBytes(BytesOf(bytes)));
    C3PO_ASSIGN_OR_RETURN(v1::GenerateRequest parsed, ParseRequest<v1::GenerateRequest>(bytes));
    const auto request = std::make_shared<const v1::GenerateRequest>(std::move(parsed));
    const CallContext context = call().Context(request->request_id());
    const auto next = [self, request, context] {
      return request->choices_size() > 0 ? self->SubmitChoice(*request, context, self)
                                         : self->Submit(*request, context, self);
    };
    const auto failed = [self](const absl::Status& status) { self->OnDone(status, CallSummary()); };
    return OnceSeen(parts_, kOptimizationsGeneration, request->optimization().min_index_generation(), context, next,
                    failed);
  }

  absl::Status Submit(const v1::GenerateRequest& request, const CallContext& context,
                      std::shared_ptr<GenerationListener> listener) {
    std::optional<AnswerForm> form;
    if (request.has_structured_output()) {
      C3PO_ASSIGN_OR_RETURN(form, FormFromProto(request.structured_output()));
    }
    with_logprobs_ = request.sampling().has_logprobs();
    GenerateCall generate;
    generate.context = context;
    generate.form = std::move(form);
    C3PO_ASSIGN_OR_RETURN(generate.context.priority, PriorityOf(request.priority(), call()));
    C3PO_ASSIGN_OR_RETURN(generate.input, InputFromProto(request));
    C3PO_ASSIGN_OR_RETURN(generate.sampling,
                          SamplingFromProto(request.sampling(), parts_.default_sampling, DrawSeed()));
    C3PO_ASSIGN_OR_RETURN(generate.experts, ExpertsFromProto(request));
    generate.max_tokens_given = request.sampling().has_max_tokens();
    C3PO_ASSIGN_OR_RETURN(generate.optimization,
                          parts_.profiles->Resolve(request.optimization(), call().collections()));
    call().NoteCollection(generate.optimization.collection);
    return parts_.pipeline->Generate(std::move(generate), std::move(listener));
  }

  absl::Status SubmitChoice(const v1::GenerateRequest& request, const CallContext& context,
                            std::shared_ptr<GenerationListener> listener) {
    C3PO_RETURN_IF_ERROR(CheckChoiceSampling(request.sampling()));
    if (request.has_structured_output()) {
      return absl::InvalidArgumentError(
          "structured_output: must not be set beside choices, one of which is the answer");
    }
    ScoreCall choose;
    choose.choose = true;
    C3PO_ASSIGN_OR_RETURN(choose.experts, ExpertsFromProto(request));
    choose.context = context;
    C3PO_ASSIGN_OR_RETURN(choose.context.priority, PriorityOf(request.priority(), call()));
    C3PO_ASSIGN_OR_RETURN(choose.input, InputFromProto(request));
    choose.continuations.assign(request.choices().begin(), request.choices().end());
    C3PO_ASSIGN_OR_RETURN(choose.optimization, parts_.profiles->Resolve(request.optimization(), call().collections()));
    choose.offset_may_be_missing = !request.optimization().use_offset();
    call().NoteCollection(choose.optimization.collection);
    if (choose.optimization.method == Method::kOracle) {
      return absl::InvalidArgumentError(
          "optimization.method: ORACLE is for Score requests, which can bring the answer");
    }
    return parts_.pipeline->Score(std::move(choose), std::move(listener));
  }

  const ServiceParts& parts_;
  bool with_logprobs_ = false;
  std::vector<ContinuationScore> scores_;  // Of choices.
  std::shared_ptr<GenerateReactor> self_;
};

class ScoreReactor final : public grpc::ServerUnaryReactor, public GenerationListener {
 public:
  static ScoreReactor* Start(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                             grpc::ByteBuffer* response, const ServiceParts& parts) {
    auto reactor = std::shared_ptr<ScoreReactor>(new ScoreReactor(context, response, parts));
    reactor->self_ = reactor;
    const auto submit = [&] { return reactor->Begin(request, reactor); };
    const absl::Status status = CatchEscaped(ThreadKind::kTransport, submit);
    if (!status.ok()) reactor->OnDone(status, CallSummary());
    return reactor.get();
  }

  void OnOptimization(const OptimizationReport& report) override {
    call_.NoteReport(report);
    *message_.mutable_optimization() = ReportToProto(report);
  }
  void OnChunk(TextChunk) override {}
  void OnRoutes(RoutedExperts prompt) override {
    for (v1::RoutedExperts& piece : RoutePieces(prompt)) *message_.add_routed_experts() = std::move(piece);
  }
  void OnScores(std::vector<ContinuationScore> scores) override {
    for (const ContinuationScore& score : scores) *message_.add_scores() = ScoreToProto(score);
  }
  void OnDone(const absl::Status& status, const CallSummary& summary) override {
    if (ended_.exchange(true)) return;
    call_.NoteUsage(summary.usage, summary.cost);
    absl::Status end = status;
    if (status.ok()) end = CatchEscaped(ThreadKind::kEngine, [&] { return Fill(summary); });
    Finish(call_.End(end));
  }

  void OnCancel() override { call_.Cancel(); }
  void OnDone() override { self_.reset(); }

 private:
  ScoreReactor(grpc::CallbackServerContext* context, grpc::ByteBuffer* response, const ServiceParts& parts)
      : parts_(parts), call_(context, parts, Metrics::Rpc::kScore), response_(response) {}

  absl::Status Fill(const CallSummary& summary) {
    *message_.mutable_timings() = TimingsToProto(summary.timings);
    *message_.mutable_provenance() = ProvenanceToProto(summary.provenance, parts_.version);
    message_.mutable_usage()->set_prompt_tokens(static_cast<uint32_t>(summary.usage.prompt_tokens));
    message_.mutable_usage()->set_completion_tokens(static_cast<uint32_t>(summary.usage.completion_tokens));
    message_.set_request_id(call_.request_id());
    C3PO_ASSIGN_OR_RETURN(*response_, ToBytes(message_));
    return call_.HoldBytes(BytesOf(*response_));
  }

  absl::Status Begin(const grpc::ByteBuffer& bytes, const std::shared_ptr<ScoreReactor>& self) {
    C3PO_RETURN_IF_ERROR(call_.entry());
    C3PO_RETURN_IF_ERROR(call_.HoldBytes(BytesOf(bytes)));
    C3PO_ASSIGN_OR_RETURN(v1::ScoreRequest parsed, ParseRequest<v1::ScoreRequest>(bytes));
    const auto request = std::make_shared<const v1::ScoreRequest>(std::move(parsed));
    const CallContext context = call_.Context(request->request_id());
    const auto next = [self, request, context] { return self->Submit(*request, context, self); };
    const auto failed = [self](const absl::Status& status) { self->OnDone(status, CallSummary()); };
    return OnceSeen(parts_, kOptimizationsGeneration, request->optimization().min_index_generation(), context, next,
                    failed);
  }

  absl::Status Submit(const v1::ScoreRequest& request, const CallContext& context,
                      std::shared_ptr<GenerationListener> listener) {
    ScoreCall call;
    call.context = context;
    C3PO_ASSIGN_OR_RETURN(call.context.priority, PriorityOf(request.priority(), call_));
    C3PO_ASSIGN_OR_RETURN(call.input, InputFromProto(request));
    C3PO_ASSIGN_OR_RETURN(call.experts, ExpertsFromProto(request));
    call.continuations.assign(request.continuations().begin(), request.continuations().end());
    C3PO_ASSIGN_OR_RETURN(call.optimization, parts_.profiles->Resolve(request.optimization(), call_.collections()));
    call.offset_may_be_missing = !request.optimization().use_offset();
    call_.NoteCollection(call.optimization.collection);
    if (request.has_oracle_answer()) call.oracle_answer = request.oracle_answer();
    return parts_.pipeline->Score(std::move(call), std::move(listener));
  }

  const ServiceParts& parts_;
  CallState call_;
  v1::ScoreResponse message_;
  grpc::ByteBuffer* const response_;
  std::atomic<bool> ended_{false};
  std::shared_ptr<ScoreReactor> self_;
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* GenerationService::Generate(grpc::CallbackServerContext* context,
                                                                        const grpc::ByteBuffer* request) {
  return GenerateReactor::Start(context, *request, parts_);
}

grpc::ServerUnaryReactor* GenerationService::Score(grpc::CallbackServerContext* context,
                                                   const grpc::ByteBuffer* request, grpc::ByteBuffer* response) {
  return ScoreReactor::Start(context, *request, response, parts_);
}

grpc::ServerUnaryReactor* GenerationService::Tokenize(grpc::CallbackServerContext* context,
                                                      const grpc::ByteBuffer* bytes, grpc::ByteBuffer* response) {
  const auto tokenize = [this, bytes, response](CallState&) -> absl::Status {
    const Tokenizer& tokenizer = *parts_.pipeline_parts.text->tokenizer();
    C3PO_ASSIGN_OR_RETURN(const v1::TokenizeRequest request, ParseRequest<v1::TokenizeRequest>(*bytes));
    const bool special = request.has_add_special_tokens() ? request.add_special_tokens() : true;
    const auto ids = tokenizer.Encode(request.text(), special);
    if (!ids.ok()) return absl::Status(ids.status().code(), absl::StrCat("text: ", ids.status().message()));
    v1::TokenizeResponse message;
    for (int32_t id : *ids) {
      message.add_ids(static_cast<uint32_t>(id));
      message.add_pieces(std::string(tokenizer.Piece(id)));
    }
    if (message.ByteSizeLong() > kAnswerBytesMax) message.clear_pieces();
    C3PO_ASSIGN_OR_RETURN(*response, ToBytes(message));
    return absl::OkStatus();
  };
  return OnWorker(context, parts_, Metrics::Rpc::kTokenize, *bytes, response, tokenize);
}

grpc::ServerUnaryReactor* GenerationService::Detokenize(grpc::CallbackServerContext* context,
                                                        const v1::DetokenizeRequest* request,
                                                        v1::DetokenizeResponse* response) {
  const auto detokenize = [this, request, response](CallState&) -> absl::Status {
    const PromptText& text = *parts_.pipeline_parts.text;
    std::vector<int32_t> ids;
    for (int i = 0; i < request->ids_size(); ++i) {
      if (request->ids(i) >= static_cast<uint32_t>(text.ids_end())) {
        return absl::InvalidArgumentError(
            absl::StrCat("ids[", i, "]: ", request->ids(i), " is outside the vocabulary of ", text.ids_end()));
      }
      ids.push_back(static_cast<int32_t>(request->ids(i)));
    }
    const bool skip_special_tokens = request->has_skip_special_tokens() ? request->skip_special_tokens() : true;
    response->set_text(text.tokenizer()->Decode(ids, skip_special_tokens));
    return absl::OkStatus();
  };
  return OnWorker(context, parts_, Metrics::Rpc::kDetokenize, *request, response, detokenize);
}

}  // namespace c3po
