#include "server/pipeline/generation_pipeline.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/pipeline/answer_set.h"
#include "server/pipeline/choice_offset.h"
#include "server/pipeline/counted_call.h"
#include "server/pipeline/embed_sink.h"
#include "server/pipeline/learned_override.h"
#include "server/pipeline/reference_state_builder.h"
#include "server/pipeline/request_admission.h"
#include "server/pipeline/score_checks.h"
#include "server/pipeline/score_tokens.h"
#include "server/pipeline/stage_trace.h"
#include "server/sampling/sampler.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(SteadyNow() - start); }

// The pathway that an earlier answer to the same prompt found.
class KnownPathway final : public OptimizationTask {
 public:
  explicit KnownPathway(std::shared_ptr<const RoutingOverride> routing) : routing_(std::move(routing)) {}
  absl::StatusOr<bool> Step(int64_t) override { return true; }
  std::shared_ptr<const RoutingOverride> routing() const override { return routing_; }

 private:
  const std::shared_ptr<const RoutingOverride> routing_;
};

// A request of one more answer from the first one's: nothing is searched again.
SequenceRequest FollowerOf(SequenceRequest first, int index, const OptimizationTask* search) {
  first.sampling.answer = index;
  first.sampling.prompt_logprobs = -1;
  first.mean_layer = first.state_layer = -1;
  first.want_prompt_routes = false;  // They are the first one's.
  first.on_prefilled = nullptr;
  if (search == nullptr || search->routing() == nullptr) return first;
  first.on_prefilled = [routing = search->routing()](
                           const PromptCapture&, const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
    return std::make_shared<KnownPathway>(routing);
  };
  return first;
}

absl::Status InField(absl::string_view prefix, const absl::Status& status) {
  if (status.ok()) return status;
  return Reworded(status, absl::StrCat(prefix, status.message()));
}

// The request as a neighbor of itself, with its answer.
NeighborCase OracleCase(const ScoreCall& call, const PromptText::Prompt& prompt,
                        const std::vector<std::vector<int32_t>>& continuations) {
  const auto found = std::find(call.continuations.begin(), call.continuations.end(), *call.oracle_answer);
  const auto gold = static_cast<size_t>(found - call.continuations.begin());
  NeighborCase oracle{absl::StrCat("request ", call.context.request_id), prompt.tokens, {continuations[gold]}, 0, 1};
  if (ReadsChoices(call.optimization.objective)) {
    oracle.continuations = continuations;
    oracle.gold = static_cast<int>(gold);
  }
  return oracle;
}

absl::Status CheckCancelled(const CallContext& context) {
  const bool cancelled = context.cancelled && context.cancelled->load(std::memory_order_relaxed);
  return cancelled ? absl::CancelledError("the client cancelled the request") : absl::OkStatus();
}

SequenceRequest RequestOf(const CallContext& context) {
  SequenceRequest request;
  request.request_id = context.request_id;
  request.arrival = context.arrival;
  request.deadline = context.deadline;
  request.cancelled = context.cancelled;
  request.caller = context.caller;
  request.priority = context.priority;
  return request;
}

}  // namespace

absl::Status GenerationPipeline::Generate(GenerateCall call, std::shared_ptr<GenerationListener> listener) {
  if (call.optimization.method == Method::kOracle) {
    return absl::InvalidArgumentError("optimization.method: ORACLE is for Score requests, which can bring the answer");
  }
  C3PO_RETURN_IF_ERROR(InField("sampling.", ValidateSamplingParams(call.sampling)));
  C3PO_RETURN_IF_ERROR(CheckStops(call.sampling.stop, parts_.limits));
  C3PO_RETURN_IF_ERROR(CheckAnswers(call.sampling, parts_.limits));
  C3PO_RETURN_IF_ERROR(CheckLogitBias(call.sampling, parts_.limits, parts_.model->shape().vocabulary_size));
  const int output_max = parts_.limits.output_tokens_max;
  if (!call.max_tokens_given && output_max > 0)
    call.sampling.max_tokens = std::min(call.sampling.max_tokens, output_max);
  C3PO_RETURN_IF_ERROR(CheckTokens("sampling.max_tokens", static_cast<size_t>(call.sampling.max_tokens), output_max));
  C3PO_RETURN_IF_ERROR(ValidateSettings(call.optimization, parts_.model->shape()));
  C3PO_RETURN_IF_ERROR(CheckExperts(call.experts, call.optimization, parts_.limits, parts_.model->shape()));
  C3PO_ASSIGN_OR_RETURN(PermitPtr permit, Enter(call.context));
  TraceRequest(call, parts_.model->shape());
  const auto counted =
      std::make_shared<CountedCall>(parts_.metrics, call.context.arrival, std::move(listener), call.context.trace);
  auto shared = std::make_shared<GenerateCall>(std::move(call));
  const std::shared_ptr<PromptInput> input(shared, &shared->input);
  const auto run = [this, shared, permit, counted] { return RunGenerate(*shared, permit, counted); };
  const auto once_formed = [this, shared, counted, run] {
    return OnceStatesAreThere(shared->optimization, shared->context, counted, run);
  };
  const auto then = [this, shared, counted, once_formed] { return CompileFirst(shared, counted, once_formed); };
  return OnWorker(counted,
                  [this, shared, input, counted, then] { return RenderFirst(shared->context, input, counted, then); });
}

absl::Status GenerationPipeline::Score(ScoreCall call, std::shared_ptr<GenerationListener> listener) {
  C3PO_RETURN_IF_ERROR(CheckContinuations(call, parts_.limits));
  C3PO_RETURN_IF_ERROR(ValidateSettings(call.optimization, parts_.model->shape()));
  C3PO_RETURN_IF_ERROR(CheckExperts(call.experts, call.optimization, parts_.limits, parts_.model->shape()));
  C3PO_RETURN_IF_ERROR(CheckOracle(call));
  C3PO_ASSIGN_OR_RETURN(PermitPtr permit, Enter(call.context));
  TraceRequest(call, parts_.model->shape());
  const auto counted =
      std::make_shared<CountedCall>(parts_.metrics, call.context.arrival, std::move(listener), call.context.trace);
  const auto tokens = std::make_shared<ScoreTokens>(parts_.text, std::move(call), parts_.limits.output_tokens_max);
  const std::shared_ptr<PromptInput> input(tokens, &tokens->input());
  const auto run = [this, tokens, permit, counted] { return Tokenize(tokens, permit, counted); };
  const auto then = [this, tokens, counted, run] {
    return OnceStatesAreThere(tokens->call().optimization, tokens->call().context, counted, run);
  };
  return OnWorker(counted, [this, tokens, input, counted, then] {
    return RenderFirst(tokens->call().context, input, counted, then);
  });
}

absl::Status GenerationPipeline::OnWorker(const std::shared_ptr<CountedCall>& counted,
                                          std::function<absl::Status()> job) const {
  const absl::Status taken =
      OnWorker(std::move(job), [counted](const absl::Status& status) { counted->OnDone(status, CallSummary()); });
  if (!taken.ok()) counted->CountEnd(taken, CallSummary());  // Its listener is told by who called.
  return taken;
}

absl::Status GenerationPipeline::OnceStatesAreThere(const OptimizationSettings& settings, const CallContext& context,
                                                    const std::shared_ptr<CountedCall>& counted,
                                                    std::function<absl::Status()> next) const {
  if (settings.neighbor_source == NeighborSource::kEmbedding || !Retrieves(settings)) return next();
  if (parts_.states == nullptr) {
    return absl::FailedPreconditionError("optimization.neighbor_source: this server makes no states of references");
  }
  PathwayQuery query{settings, {}, {}, std::nullopt};
  C3PO_RETURN_IF_ERROR(ResolveQuery(query));  // A prior has critical layers of its own.
  const std::optional<int> layer = StateLayerOf(query.settings, parts_.model->shape().moe_layers);
  const auto failed = [counted](const absl::Status& status) { counted->OnDone(status, CallSummary()); };
  const auto ready = [this, failed, next](const absl::Status& status) {
    const absl::Status taken = status.ok() ? OnWorker(next, failed) : status;
    if (!taken.ok()) failed(taken);
  };
  const bool is_ready = parts_.states->WhenReady(context, settings.collection, *layer, ready);
  return is_ready ? next() : absl::OkStatus();
}

absl::Status GenerationPipeline::RenderFirst(const CallContext& context, const std::shared_ptr<PromptInput>& input,
                                             const std::shared_ptr<CountedCall>& counted,
                                             std::function<absl::Status()> then) const {
  if (!parts_.text->RendersElsewhere(*input)) return then();
  const auto check = [context]() -> absl::Status {
    C3PO_RETURN_IF_ERROR(CheckCancelled(context));
    return SteadyNow() < context.deadline
               ? absl::OkStatus()
               : absl::DeadlineExceededError("the deadline passed before the conversation was rendered");
  };
  const auto take = [this, input, counted, trace = context.trace,
                     then = std::move(then)](absl::StatusOr<RenderedChat> rendered) {
    const absl::Status status = CatchEscaped(ThreadKind::kWorker, [&]() -> absl::Status {
      C3PO_RETURN_IF_ERROR(rendered.status());
      TraceWork(trace.get(), "render", SteadyNow() - absl::Seconds(rendered->render_seconds));
      *input = *std::move(rendered);
      return OnWorker(then, [counted](const absl::Status& failed) { counted->OnDone(failed, CallSummary()); });
    });
    if (!status.ok()) counted->OnDone(status, CallSummary());
  };
  parts_.text->Render(std::get<Conversation>(std::move(*input)), check, take);
  return absl::OkStatus();
}

absl::StatusOr<GenerationPipeline::PermitPtr> GenerationPipeline::Enter(const CallContext& context) const {
  if (parts_.admission == nullptr) return PermitPtr();
  C3PO_ASSIGN_OR_RETURN(PermitPtr permit, parts_.admission->Enter(context.caller));
  return permit;
}

absl::Status GenerationPipeline::Embed(CallContext context, std::string text, EmbeddingCallback done) {
  if (text.empty()) return absl::InvalidArgumentError("text: must not be empty");
  return OnWorker(
      [this, context = std::move(context), text = std::move(text), done]() -> absl::Status {
        C3PO_RETURN_IF_ERROR(CheckCancelled(context));
        if (parts_.embedding->from_model()) return EmbedWithModel(context, text, done);
        done(parts_.embedding->OfText(text));
        return absl::OkStatus();
      },
      [done](const absl::Status& status) { done(status); });
}

absl::Status GenerationPipeline::EmbedWithModel(const CallContext& context, const std::string& text,
                                                const EmbeddingCallback& done) const {
  C3PO_ASSIGN_OR_RETURN(PromptText::Prompt prompt, parts_.text->Encode(text, 1));
  C3PO_RETURN_IF_ERROR(context.Charge(static_cast<int64_t>(prompt.tokens.size())));
  auto sink = std::make_shared<EmbedSink>(context, done);
  SequenceRequest request = RequestOf(context);
  request.continuations = {{prompt.tokens.front()}};  // Scored only because a sequence has to end in something.
  request.mean_layer = parts_.embedding->entry_layer();
  request.on_prefilled = [sink](const PromptCapture& capture,
                                const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
    sink->TakeStates(capture.mean_hidden);
    return nullptr;
  };
  request.prompt = std::move(prompt.tokens);
  request.sink = sink;
  const absl::Status submitted = parts_.engine->Submit(std::move(request));
  if (!submitted.ok()) context.Used(0);
  return submitted;
}

absl::Status GenerationPipeline::OnWorker(std::function<absl::Status()> job,
                                          std::function<void(const absl::Status&)> failed) const {
  const bool taken = parts_.workers->Submit(std::move(job), std::move(failed));
  return taken ? absl::OkStatus()
               : absl::ResourceExhaustedError("the queue is full: too many requests wait to be prepared");
}

absl::Status GenerationPipeline::RunGenerate(const GenerateCall& call, const PermitPtr& permit,
                                             const std::shared_ptr<GenerationListener>& listener) const {
  C3PO_RETURN_IF_ERROR(CheckCancelled(call.context));
  const absl::Time start = SteadyNow();
  C3PO_ASSIGN_OR_RETURN(PromptText::Prompt prompt,
                        parts_.text->Encode(call.input, call.max_tokens_given ? call.sampling.max_tokens : 1));
  C3PO_ASSIGN_OR_RETURN(const IncrementalDetokenizer detokenizer,
                        IncrementalDetokenizer::Create(parts_.text->tokenizer(), call.sampling.stop,
                                                       call.skip_special_tokens, prompt.tokens));
  std::vector<std::unique_ptr<IncrementalDetokenizer>> detokenizers;
  for (int i = 0; i < call.sampling.n; ++i) {
    detokenizers.push_back(std::make_unique<IncrementalDetokenizer>(detokenizer.Clone()));
  }
  TraceWork(call.context.trace.get(), "tokenize", start);
  CallSummary summary;
  summary.timings.tokenize_seconds = SecondsSince(start) + RenderSeconds(call.input);
  summary.usage.prompt_tokens = static_cast<int>(prompt.tokens.size());
  summary.provenance = MakeProvenance(call.sampling.seed);
  SequenceRequest request = RequestOf(call.context);
  request.sampling = call.sampling;
  request.form = call.compiled_form;
  if (!call.max_tokens_given) {
    const int room = parts_.model->shape().context_window - static_cast<int>(prompt.tokens.size());
    request.sampling.max_tokens = std::min(call.sampling.max_tokens, room);
  }
  C3PO_RETURN_IF_ERROR(CheckTokens(FieldOf(call.input), prompt.tokens.size(), parts_.limits.prompt_tokens_max));
  WishExperts(call.experts, request);
  C3PO_RETURN_IF_ERROR(HoldRoutes(call.context, call.experts, static_cast<int64_t>(prompt.tokens.size()),
                                  /*in_one_message=*/false, parts_.model->shape()));
  PathwayQuery query{call.optimization, {}, {}, std::nullopt};
  C3PO_RETURN_IF_ERROR(ResolveQuery(query));
  C3PO_ASSIGN_OR_RETURN(const RequestWork work, TakePlace(call.context, permit.get(), prompt.tokens.size(),
                                                          request.sampling.max_tokens * call.sampling.n,
                                                          parts_.model->shape().moe_layers, query));
  C3PO_ASSIGN_OR_RETURN(
      const std::shared_ptr<PathwaySearch> search,
      AttachPathwaySearch(prompt, std::move(query), call.context.trace.get(), summary.timings, listener, request));
  C3PO_RETURN_IF_ERROR(CheckCancelled(call.context));
  request.prompt = std::move(prompt.tokens);
  AnswerSet::Start start_other;
  if (call.sampling.n > 1) {
    start_other = [engine = parts_.engine, request, search](int index, std::shared_ptr<SequenceSink> sink) {
      SequenceRequest other = FollowerOf(request, index, search.get());
      other.sink = std::move(sink);
      engine->Continue(std::move(other));
    };
  }
  CallEnd end(listener, permit, std::move(summary), call.context.arrival, search, work);
  const auto answers = std::make_shared<AnswerSet>(std::move(end), std::move(detokenizers), std::move(start_other));
  request.sink = answers->FirstSink();
  return parts_.engine->Submit(std::move(request));
}

absl::Status GenerationPipeline::Tokenize(const std::shared_ptr<ScoreTokens>& tokens, const PermitPtr& permit,
                                          const std::shared_ptr<CountedCall>& counted) const {
  while (true) {
    const absl::Time start = SteadyNow();
    C3PO_ASSIGN_OR_RETURN(const bool whole, tokens->Next());
    TraceWork(tokens->call().context.trace.get(), "tokenize", start);
    if (whole) return RunScore(*tokens, permit, counted);
    // The jobs of others go first. Where there is no place behind them, this one goes on.
    const auto go_on = [this, tokens, permit, counted] { return Tokenize(tokens, permit, counted); };
    const auto failed = [counted](const absl::Status& status) { counted->OnDone(status, CallSummary()); };
    if (OnWorker(go_on, failed).ok()) return absl::OkStatus();
  }
}

absl::Status GenerationPipeline::RunScore(ScoreTokens& tokens, const PermitPtr& permit,
                                          const std::shared_ptr<GenerationListener>& listener) const {
  const ScoreCall& call = tokens.call();
  PromptText::Prompt& prompt = tokens.prompt();
  SequenceRequest request = RequestOf(call.context);
  request.continuations = std::move(tokens.continuations());
  CallSummary summary;
  summary.usage.completion_tokens = tokens.completion_tokens();
  summary.timings.tokenize_seconds = tokens.seconds();
  summary.usage.prompt_tokens = static_cast<int>(prompt.tokens.size());
  summary.provenance = MakeProvenance(0);
  PathwayQuery query{call.optimization, {}, {}, std::nullopt};
  for (const auto& continuation : request.continuations) query.choice_tokens.push_back(continuation.front());
  if (call.oracle_answer) query.oracle = OracleCase(call, prompt, request.continuations);
  C3PO_RETURN_IF_ERROR(CheckTokens(FieldOf(call.input), prompt.tokens.size(), parts_.limits.prompt_tokens_max));
  WishExperts(call.experts, request);
  C3PO_RETURN_IF_ERROR(HoldRoutes(call.context, call.experts,
                                  static_cast<int64_t>(prompt.tokens.size()) + tokens.completion_tokens(),
                                  /*in_one_message=*/true, parts_.model->shape()));
  C3PO_RETURN_IF_ERROR(ResolveQuery(query));
  C3PO_ASSIGN_OR_RETURN(std::optional<LabelOffset> offset, ResolveOffsetOf(call, query));
  C3PO_ASSIGN_OR_RETURN(const RequestWork work,
                        TakePlace(call.context, permit.get(), prompt.tokens.size(), summary.usage.completion_tokens,
                                  parts_.model->shape().moe_layers, query));
  C3PO_ASSIGN_OR_RETURN(
      const std::shared_ptr<PathwaySearch> search,
      AttachPathwaySearch(prompt, std::move(query), call.context.trace.get(), summary.timings, listener, request));
  C3PO_RETURN_IF_ERROR(CheckCancelled(call.context));
  request.prompt = std::move(prompt.tokens);
  CallEnd end(listener, permit, std::move(summary), call.context.arrival, search, work);
  if (call.choose) {
    request.sink =
        std::make_shared<ChoiceSink>(std::move(end), call.continuations, request.continuations, std::move(offset));
  } else {
    request.sink = std::make_shared<ScoreSink>(std::move(end), std::move(offset));
  }
  return parts_.engine->Submit(std::move(request));
}

void GenerationPipeline::WishExperts(const ExpertsWish& wish, SequenceRequest& request) const {
  request.experts_per_token = ExpertsPerToken(wish, parts_.model->shape());
  request.want_routes = request.want_prompt_routes = wish.return_routed;
}

// Before the call is admitted, as a prior's layers and positions are part of its cost.
absl::Status GenerationPipeline::ResolveQuery(PathwayQuery& query) const {
  if (query.settings.method == Method::kNone) return absl::OkStatus();
  C3PO_RETURN_IF_ERROR(InField("optimization.collection: ", ResolvePrior(*parts_.shifts, query.settings)));
  return query.settings.use_prior ? ValidateSettings(query.settings, parts_.model->shape()) : absl::OkStatus();
}

absl::StatusOr<std::optional<LabelOffset>> GenerationPipeline::ResolveOffsetOf(const ScoreCall& call,
                                                                               PathwayQuery& query) const {
  if (!query.settings.use_offset) return std::optional<LabelOffset>();
  absl::StatusOr<ChoiceOffset> offset =
      ResolveOffset(parts_.offsets, query.settings, call.offset_may_be_missing, call.continuations);
  C3PO_RETURN_IF_ERROR(InField("optimization.collection: ", offset.status()));
  if (!offset->warning.empty()) query.settings.warnings.push_back(std::move(offset->warning));
  query.offset_applied = offset->applied.has_value();
  return std::move(offset->applied);
}

absl::StatusOr<std::shared_ptr<PathwaySearch>> GenerationPipeline::AttachPathwaySearch(
    const PromptText::Prompt& prompt, PathwayQuery query, CallTrace* trace, StageTimings& timings,
    const std::shared_ptr<GenerationListener>& listener, SequenceRequest& request) const {
  if (query.settings.method == Method::kNone) {
    if (parts_.metrics) parts_.metrics->CountGate(GateDecision::kNotRequested);
    OptimizationReport report;
    report.settings = query.settings;
    report.timings = timings;
    report.offset_applied = query.offset_applied;
    listener->OnOptimization(report);
    return nullptr;
  }
  const bool retrieve = Retrieves(query.settings);
  const std::optional<int> state_layer = StateLayerOf(query.settings, parts_.model->shape().moe_layers);
  const bool retrieve_after_prefill = retrieve && (state_layer || parts_.embedding->from_model());
  const bool retrieve_now = retrieve && !retrieve_after_prefill;
  std::vector<float> embedding;
  if (retrieve_now) {
    const absl::Time start = SteadyNow();
    C3PO_ASSIGN_OR_RETURN(embedding, parts_.embedding->OfText(prompt.text));
    timings.embed_seconds = SecondsSince(start);
    TraceWork(trace, "embed", start);
    if (parts_.metrics) parts_.metrics->ObserveEmbedding(timings.embed_seconds);
  }
  request.entry_layer = query.settings.critical_layers.front();
  if (retrieve_after_prefill && state_layer) request.state_layer = *state_layer;
  if (retrieve_after_prefill && !state_layer) request.mean_layer = parts_.embedding->entry_layer();
  request.rule = query.settings.rule;
  request.prompt_positions = query.settings.prompt_positions;
  query.timings = timings;
  const SearchContext context{parts_.model,  parts_.catalog, parts_.text,
                              parts_.shifts, parts_.metrics, parts_.work_memory_bytes};
  auto search = std::make_shared<PathwaySearch>(
      context, std::move(query), [listener](const OptimizationReport& report) { listener->OnOptimization(report); });
  if (retrieve_now) {
    const absl::Time start = SteadyNow();
    C3PO_RETURN_IF_ERROR(search->Retrieve(embedding));
    TraceWork(trace, "retrieve", start);
  }
  timings.retrieval_seconds = search->retrieval_seconds();
  request.on_prefilled = [search, retrieve_after_prefill, by_state = state_layer.has_value()](
                             const PromptCapture& capture,
                             const Readout& next) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
    if (retrieve_after_prefill) {
      C3PO_ASSIGN_OR_RETURN(const std::vector<float> unit,
                            QueryEmbedding::OfStates(by_state ? capture.state : capture.mean_hidden));
      C3PO_RETURN_IF_ERROR(search->Retrieve(unit));
    }
    C3PO_ASSIGN_OR_RETURN(const bool worthwhile, search->Begin(capture, next));
    return worthwhile ? std::shared_ptr<OptimizationTask>(search) : nullptr;
  };
  return search;
}

Provenance GenerationPipeline::MakeProvenance(uint64_t seed) const {
  return {parts_.model->shape().digest, parts_.embedding->digest(), parts_.catalog->generation(), seed};
}

}  // namespace c3po
