#include "server/pipeline/stage_trace.h"

#include <algorithm>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "index/base/steady_time.h"

namespace c3po {
namespace {

constexpr absl::Duration kGapMin = absl::Milliseconds(1);  // Of a worker's work: less is no waiting.

absl::Time After(absl::Time start, double seconds) { return start + absl::Seconds(seconds); }

std::string OperationOf(const PromptInput& input) {
  const bool chat = std::holds_alternative<Conversation>(input) || std::holds_alternative<RenderedChat>(input);
  return chat ? "chat" : "text_completion";
}

void TraceWhat(CallTrace& trace, const CallContext& context, std::string operation, const ModelShape& shape) {
  trace.Set("gen_ai.operation.name", std::move(operation));
  trace.Set("gen_ai.provider.name", "c3po");
  trace.Set("gen_ai.request.model", shape.name);
  trace.Set("gen_ai.response.model", shape.name);
  trace.Set("gen_ai.response.id", context.request_id);
}

std::string FinishName(FinishReason reason) { return reason == FinishReason::kStop ? "stop" : "length"; }

// The least loss is taken, or the last where nothing was chosen among several.
double LossAfter(const OptimizationReport& report, const std::vector<double>& losses) {
  const auto step = static_cast<size_t>(report.selected_step.value_or(static_cast<int>(losses.size()) - 1));
  return losses[std::min(step, losses.size() - 1)];
}

SpanAttributes AttributesOf(const OptimizationReport& report) {
  SpanAttributes attributes = {
      {"c3po.method", std::string(TermOf(report.settings.method).name)},
      {"c3po.collection", report.settings.collection},
      {"c3po.gate", std::string(TermOf(report.gate).name)},
      {"c3po.neighbors", static_cast<int64_t>(report.neighbors.size())},
  };
  if (!report.gate_reason.empty()) attributes.emplace_back("c3po.gate_reason", report.gate_reason);
  if (!report.losses.empty()) {
    attributes.emplace_back("c3po.optimization.steps", static_cast<int64_t>(report.losses.size()) - 1);
    attributes.emplace_back("c3po.optimization.loss_before", report.losses.front());
    attributes.emplace_back("c3po.optimization.loss_after", LossAfter(report, report.losses));
  }
  if (!report.validation_losses.empty()) {
    attributes.emplace_back("c3po.optimization.validation_loss_before", report.validation_losses.front());
    attributes.emplace_back("c3po.optimization.validation_loss_after", LossAfter(report, report.validation_losses));
  }
  if (report.nearest_distance) attributes.emplace_back("c3po.nearest_distance", *report.nearest_distance);
  if (report.shortened) attributes.emplace_back("c3po.optimization.shortened", true);
  return attributes;
}

}  // namespace

void TraceRequest(const GenerateCall& call, const ModelShape& shape) {
  if (call.context.trace == nullptr) return;
  CallTrace& trace = *call.context.trace;
  TraceWhat(trace, call.context, OperationOf(call.input), shape);
  trace.Set("gen_ai.request.max_tokens", int64_t{call.sampling.max_tokens});
  trace.Set("gen_ai.request.temperature", call.sampling.temperature);
  trace.Set("gen_ai.request.top_p", call.sampling.top_p);
  trace.Set("gen_ai.request.top_k", static_cast<double>(call.sampling.top_k));
  trace.Set("gen_ai.request.choice.count", int64_t{call.sampling.n});
}

void TraceRequest(const ScoreCall& call, const ModelShape& shape) {
  if (call.context.trace == nullptr) return;
  CallTrace& trace = *call.context.trace;
  TraceWhat(trace, call.context, call.choose ? OperationOf(call.input) : "score", shape);
  trace.Set("c3po.continuations", static_cast<int64_t>(call.continuations.size()));
}

void TraceWork(CallTrace* trace, absl::string_view name, absl::Time begin) {
  if (trace == nullptr) return;
  const absl::Time before = trace->StagesEnd();
  if (before == trace->begin() || begin - before >= kGapMin) {
    if (!trace->HasStage(name)) trace->AddStage("queue", before, begin, {{"c3po.queue", "worker"}});
  }
  trace->ExtendStage(name, begin, SteadyNow());
}

void StageTrace::NoteReport(const OptimizationReport& report) {
  if (trace_ == nullptr) return;
  trace_->Set("c3po.method", std::string(TermOf(report.settings.method).name));
  optimizes_ = report.settings.method != Method::kNone;
  if (!optimizes_) return;
  trace_->Set("c3po.collection", report.settings.collection);
  trace_->Set("c3po.gate", std::string(TermOf(report.gate).name));
  optimization_ = AttributesOf(report);
}

void StageTrace::NoteEnd(const absl::Status& status, const CallSummary& summary) {
  if (trace_ == nullptr) return;
  if (trace_->StagesEnd() == trace_->begin()) {  // No worker had it.
    trace_->AddStage("queue", arrival_, SteadyNow(), {{"c3po.queue", "worker"}});
    return;
  }
  if (summary.usage.prompt_tokens == 0) return;  // It never came to the engine.
  NoteUsage(summary);
  NoteEngine(status, summary);
}

void StageTrace::NoteUsage(const CallSummary& summary) {
  trace_->Set("gen_ai.usage.input_tokens", int64_t{summary.usage.prompt_tokens});
  trace_->Set("gen_ai.usage.output_tokens", int64_t{summary.usage.completion_tokens});
  if (summary.answers.empty()) return;
  trace_->Set("gen_ai.usage.cache_read.input_tokens", int64_t{summary.sequence.cached_prompt_tokens});
  std::vector<std::string> reasons;
  for (const AnswerEnd& answer : summary.answers) reasons.push_back(FinishName(answer.finish_reason));
  trace_->Set("gen_ai.response.finish_reasons", std::move(reasons));
}

void StageTrace::NoteEngine(const absl::Status& status, const CallSummary& summary) {
  const SequenceTimings& engine = summary.sequence;
  const absl::Time now = SteadyNow();
  const bool ran = engine.before_batch_seconds.has_value();
  const absl::Time admitted = ran ? After(arrival_, *engine.before_batch_seconds) : now;
  trace_->AddStage("queue", trace_->StagesEnd(), admitted, {{"c3po.queue", "engine"}});
  if (!ran) return;
  const bool prefilled = engine.prefill_seconds > 0;
  const absl::Time prefill_end = prefilled ? After(admitted, engine.prefill_seconds) : now;
  trace_->AddStage("prefill", admitted, prefill_end,
                   {{"gen_ai.usage.input_tokens", int64_t{summary.usage.prompt_tokens}},
                    {"gen_ai.usage.cache_read.input_tokens", int64_t{engine.cached_prompt_tokens}}});
  if (!prefilled) return;
  const bool ready = status.ok() || engine.decode_seconds > 0;
  absl::Time begin = prefill_end;
  // Neighbors that were found by the prompt's states: the scheduler took that for optimization.
  const double retrieval = std::max(0.0, engine.optimization_seconds - summary.timings.optimization_seconds);
  if (retrieval > 0) {
    trace_->AddStage("retrieve", begin, After(begin, retrieval));
    begin = After(begin, retrieval);
  }
  const absl::Time found = After(prefill_end, engine.optimization_seconds + engine.optimization_wait_seconds);
  if (optimizes_ || engine.optimized) {
    optimization_.emplace_back("c3po.optimization.wait_seconds", engine.optimization_wait_seconds);
    trace_->AddStage("optimize", begin, ready ? found : now, std::move(optimization_));
  }
  if (!ready) return;
  trace_->AddStage("decode", found, now, {{"gen_ai.usage.output_tokens", int64_t{summary.usage.completion_tokens}}});
  const double first = engine.time_to_first_token_seconds;
  if (first > 0) trace_->AddEvent("first_token", After(arrival_, first));
}

}  // namespace c3po
