#include "server/rpc/doors/vllm_generate_reactor.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/optimization_choice.h"
#include "server/rpc/on_worker.h"
#include "server/rpc/profiles.h"
#include "server/rpc/wire.h"

namespace c3po {

VllmGenerateReactor::VllmGenerateReactor(grpc::CallbackServerContext* context, const ServiceParts& parts,
                                         RunningCalls* running)
    : QueuedStream(context, parts, Metrics::Rpc::kVllmGenerate), parts_(parts), running_(running), context_(context) {}

VllmGenerateReactor* VllmGenerateReactor::Start(grpc::CallbackServerContext* context, const grpc::ByteBuffer& request,
                                                const ServiceParts& parts, RunningCalls* running) {
  auto reactor = std::shared_ptr<VllmGenerateReactor>(new VllmGenerateReactor(context, parts, running));
  reactor->self_ = reactor;
  const auto submit = [&] { return InTheirWords(reactor->Begin(request, reactor), VllmFieldNames()); };
  const absl::Status status = CatchEscaped(ThreadKind::kTransport, submit);
  if (!status.ok()) reactor->OnDone(status, CallSummary());
  return reactor.get();
}

absl::Status VllmGenerateReactor::Begin(const grpc::ByteBuffer& bytes,
                                        const std::shared_ptr<VllmGenerateReactor>& self) {
  C3PO_RETURN_IF_ERROR(call().entry());
  C3PO_RETURN_IF_ERROR(call().HoldBytes(BytesOf(bytes)));
  C3PO_ASSIGN_OR_RETURN(auto parsed, ParseRequest<vllm_engine::GenerateRequest>(bytes));
  C3PO_ASSIGN_OR_RETURN(const v1::OptimizationOptions options, OptimizationFromMetadata(context_->client_metadata()));
  const auto request = std::make_shared<const vllm_engine::GenerateRequest>(std::move(parsed));
  const CallContext context = call().Context(request->request_id());
  place_ = running_->Enter(call().caller(), request->request_id(), [this] {
    aborted_.store(true);
    call().Cancel();
  });
  const auto next = [self, request, options, context] { return self->Submit(*request, options, context, self); };
  const auto failed = [self](const absl::Status& status) { self->OnDone(status, CallSummary()); };
  return OnceSeen(parts_, kOptimizationsGeneration, options.min_index_generation(), context, next, failed);
}

absl::Status VllmGenerateReactor::Submit(const vllm_engine::GenerateRequest& request,
                                         const v1::OptimizationOptions& options, const CallContext& context,
                                         std::shared_ptr<GenerationListener> listener) {
  C3PO_ASSIGN_OR_RETURN(GenerateCall generate, Read(request, options));
  generate.context = context;
  stream_ = request.stream();
  top_logprobs_ = generate.sampling.logprobs;
  stops_ = generate.sampling.stop;
  return parts_.pipeline->Generate(std::move(generate), std::move(listener));
}

absl::StatusOr<GenerateCall> VllmGenerateReactor::Read(const vllm_engine::GenerateRequest& request,
                                                       const v1::OptimizationOptions& options) {
  const ModelShape& shape = parts_.pipeline_parts.model->shape();
  C3PO_ASSIGN_OR_RETURN(GenerateCall generate,
                        GenerateFromVllm(request, {shape.context_window, shape.eos_token_ids, DrawSeed()}));
  C3PO_ASSIGN_OR_RETURN(generate.optimization, parts_.profiles->Resolve(options, call().collections()));
  call().NoteCollection(generate.optimization.collection);
  return generate;
}

void VllmGenerateReactor::OnOptimization(const OptimizationReport& report) {
  call().NoteReport(report);
  context_->AddTrailingMetadata("c3po-method", TermOf(report.settings.method).name);
  context_->AddTrailingMetadata("c3po-gate", TermOf(report.gate).name);
  if (report.index_generation > 0)
    context_->AddTrailingMetadata("c3po-index-generation", absl::StrCat(report.index_generation));
}

void VllmGenerateReactor::OnChunk(TextChunk chunk) {
  if (chunk.tokens.empty()) return;  // Text that was held back.
  const auto index = static_cast<size_t>(chunk.answer);
  if (tokens_.size() <= index) tokens_.resize(index + 1);
  tokens_[index] += static_cast<int>(chunk.tokens.size());
  if (!stream_) return Keep(chunk);
  vllm_engine::GenerateResponse message;
  *message.mutable_chunk() = ChunkToVllm(chunk, top_logprobs_);
  Send(message);
}

// What a client will be sent counts while it grows as what it has not taken does.
void VllmGenerateReactor::Keep(const TextChunk& chunk) {
  const auto index = static_cast<size_t>(chunk.answer);
  if (answers_.size() <= index) answers_.resize(index + 1);
  size_t bytes = 0;
  for (const SampledToken& token : chunk.tokens) {
    AddToken(token, top_logprobs_, &answers_[index].ids, &answers_[index].logprobs);
    bytes += sizeof token + token.top_logprobs.size() * sizeof(TokenLogprob);
  }
  const absl::Status held = call().HoldBytes(bytes);
  if (held.ok()) {
    kept_bytes_ += bytes;
    return;
  }
  SetFinalStatus(held);
  call().Cancel();
}

void VllmGenerateReactor::OnDone(const absl::Status& status, const CallSummary& summary) {
  place_ = nullptr;
  call().NoteUsage(summary.usage, summary.cost);
  const bool aborted = aborted_.load() && absl::IsCancelled(status);
  absl::Status end = aborted ? absl::OkStatus() : InTheirWords(status, VllmFieldNames());
  if (end.ok()) end = CatchEscapedIn(ThreadKind::kEngine, [&] { SendEnds(summary, aborted); });
  End(end, /*drop_queue=*/!end.ok());
}

void VllmGenerateReactor::SendEnds(const CallSummary& summary, bool aborted) {
  call().ReleaseBytes(std::exchange(kept_bytes_, 0));
  // Of an aborted call nobody says how its answers ended; one that had no token is one all the same.
  tokens_.resize(std::max<size_t>(tokens_.size(), 1));
  const size_t count = aborted ? tokens_.size() : summary.answers.size();
  for (size_t i = 0; i < count; ++i) {
    vllm_engine::GenerateResponse message;
    vllm_engine::GenerateComplete& complete = *message.mutable_complete();
    if (aborted) {
      complete = EndToVllm(static_cast<int>(i), {FinishReason::kStop, tokens_[i], std::nullopt}, summary.usage, stops_);
      complete.set_finish_reason("abort");
    } else {
      complete = EndToVllm(static_cast<int>(i), summary.answers[i], summary.usage, stops_);
    }
    if (i < answers_.size()) {
      complete.mutable_output_ids()->Swap(&answers_[i].ids);
      if (top_logprobs_ >= 0) *complete.mutable_output_logprobs() = std::move(answers_[i].logprobs);
    }
    Send(message);
  }
}

}  // namespace c3po
