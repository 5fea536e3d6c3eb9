#include "server/scheduler/continuous_batcher.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/scheduler/sequence_blocks.h"
#include "server/types/status_details.h"

namespace c3po {

namespace {

double SecondsBetween(absl::Time a, absl::Time b) { return absl::ToDoubleSeconds(b - a); }

// Seconds of optimization per second of forward passes. Running streams are to keep four fifths of their rate beside
// requests that optimize; what these need besides, prompts, embedding and retrieval, takes its part of the fifth.
constexpr double kShareBesideStreams = 0.08;
constexpr double kShareBesidePrompts = 1.0;

bool IsEndOfSequence(const ModelShape& shape, int32_t token) {
  return std::find(shape.eos_token_ids.begin(), shape.eos_token_ids.end(), token) != shape.eos_token_ids.end();
}

}  // namespace

ContinuousBatcher::ContinuousBatcher(ModelRunner* model, const BatcherLimits& limits, Metrics* metrics, Clock now)
    : model_(model),
      limits_(limits),
      metrics_(metrics),
      now_(std::move(now)),
      places_({limits.sequences_max, limits.kv_tokens_max / KvBlockPool::kPositions}, metrics, now_,
              [this](const Sequence& sequence) { units_.Leave(&sequence); }) {}

ContinuousBatcher::~ContinuousBatcher() = default;

void ContinuousBatcher::Add(SequenceRequest request) {
  auto sequence = std::make_unique<Sequence>();
  const bool fits = places_.Fits(request);
  const int64_t needed = BlocksNeeded(request);
  sequence->tokens = request.prompt;
  for (const auto& continuation : request.continuations) sequence->first_tokens.push_back(continuation.front());
  if (request.form != nullptr) sequence->matcher = request.form->NewMatcher(!request.sampling.ignore_eos);
  sequence->request = std::move(request);
  sequence->submitted = now_();
  if (sequence->request.arrival == absl::InfinitePast()) sequence->request.arrival = sequence->submitted;
  if (!fits) {
    const std::string message =
        absl::StrCat("the request needs ", needed * KvBlockPool::kPositions, " cache positions; the server has ",
                     places_.pool().blocks() * KvBlockPool::kPositions);
    return Finish(*sequence, absl::ResourceExhaustedError(message), FinishReason::kLength);
  }
  places_.Wait(std::move(sequence));
}

bool ContinuousBatcher::Step() {
  const absl::Time start = now_();
  DropEnded();
  places_.Admit();
  ReportGauges();
  if (places_.running().empty()) return !places_.waiting().empty();
  const absl::Time forward = now_();
  if (RunForward()) {
    OptimizeBeside(SecondsBetween(forward, now_()));
  } else {
    OptimizeOnce();
  }
  DropEnded();
  ReportGauges();
  if (metrics_) metrics_->ObserveEngineStep(SecondsBetween(start, now_()));
  return !places_.running().empty() || !places_.waiting().empty();
}

void ContinuousBatcher::AbortAll(const absl::Status& status) {
  for (const SequencePtr& sequence : places_.waiting()) Finish(*sequence, status, FinishReason::kLength);
  for (const SequencePtr& sequence : places_.running()) Finish(*sequence, status, FinishReason::kLength);
  DropEnded();
  ReportGauges();
}

// Ends what was cancelled or is late, and gives the room of everything that ended to others.
void ContinuousBatcher::DropEnded() {
  const absl::Time now = now_();
  const auto check = [&](Sequence& sequence) {
    if (sequence.stage == Stage::kEnded) return;
    if (sequence.cancelled()) {
      Finish(sequence, absl::CancelledError("the client cancelled the request"), FinishReason::kLength);
    } else if (now >= sequence.request.deadline) {
      Finish(sequence, absl::DeadlineExceededError("the deadline passed while the request was being served"),
             FinishReason::kLength);
    }
  };
  for (const SequencePtr& sequence : places_.waiting()) check(*sequence);
  for (const SequencePtr& sequence : places_.running()) check(*sequence);
  places_.RemoveEnded();
}

bool ContinuousBatcher::RunForward() {
  places_.ReserveRows();
  PlanStep(places_.running(), limits_.prefill_tokens_per_step, places_.pool(), plan_);
  if (plan_.segments.empty()) return false;
  if (metrics_) {
    for (const auto stage : {Stage::kPrefill, Stage::kDecode}) {
      const auto in_stage = [stage](const SegmentOwner& owner) { return owner.sequence->stage == stage; };
      if (std::any_of(plan_.owners.begin(), plan_.owners.end(), in_stage)) {
        metrics_->CountEngineStep(stage == Stage::kPrefill ? Metrics::Work::kPrefill : Metrics::Work::kDecode);
      }
    }
  }
  const absl::Status status = model_->Forward(plan_.segments, outputs_);
  for (size_t i = 0; i < plan_.owners.size(); ++i) {
    SegmentOwner& owner = plan_.owners[i];
    for (const int32_t block : owner.blocks) places_.pool().Release(block);
    if (!status.ok()) {
      Finish(*owner.sequence, status, FinishReason::kLength);
    } else if (owner.sequence->stage != Stage::kEnded) {
      Distribute(owner, plan_.segments[i], outputs_[i]);
    }
  }
  return true;
}

void ContinuousBatcher::Distribute(const SegmentOwner& owner, const Segment& segment, SegmentOutput& output) {
  Sequence& sequence = *owner.sequence;
  if (sequence.stage == Stage::kScore && !owner.catching_up)
    return TakeScore(sequence, owner.continuation, segment.start - sequence.prompt_length(), output);
  if (!output.routes.empty()) TakeRoutes(sequence, segment, output);
  sequence.cached = std::max(sequence.cached, segment.start + static_cast<int>(segment.tokens.size()));
  NameBlocks(sequence, places_.pool());
  if (owner.catching_up) return;
  switch (sequence.stage) {
    case Stage::kPrefill:
      if (sequence.reads_prompt()) {
        if (const absl::Status read = TakePrompt(sequence, segment.start, output); !read.ok()) {
          return Finish(sequence, read, FinishReason::kLength);
        }
      }
      if (sequence.cached == sequence.prompt_length()) FinishPrefill(sequence, output);
      return;
    case Stage::kResume:
      return TakeResumed(sequence, output.readout);
    case Stage::kDecode:
      return TakeToken(sequence, output.readout);
    case Stage::kScore:
    case Stage::kOptimizing:
    case Stage::kEnded:
      return;
  }
}

// Rows of the prompt that run again, under a pathway or without it once more, have the last word.
void ContinuousBatcher::TakeRoutes(Sequence& sequence, const Segment& segment, SegmentOutput& output) {
  if (segment.start < sequence.prompt_length()) {
    sequence.prompt_routes.Put(output.routes, segment.resume ? segment.entry_layer : 0);
  } else {
    sequence.request.sink->OnRoutes(std::move(output.routes));
  }
}

void ContinuousBatcher::TellPromptRoutes(Sequence& sequence) {
  if (!sequence.prompt_routes.empty()) sequence.request.sink->OnRoutes(std::move(sequence.prompt_routes));
  sequence.prompt_routes = {};
}

// A prompt that had to run again says the same again.
absl::Status ContinuousBatcher::TakePrompt(Sequence& sequence, int start, SegmentOutput& output) {
  sequence.prompt_tokens.resize(sequence.request.prompt.size());
  sequence.prompt_tokens.front().token_id = sequence.tokens.front();
  for (size_t r = 0; r < output.row_readouts.size(); ++r) {
    Readout& read = output.row_readouts[r];
    if (!read.status.ok()) return read.status;
    const size_t place = static_cast<size_t>(start) + r + 1;
    SampledToken& token = sequence.prompt_tokens[place];
    token.token_id = sequence.tokens[place];
    token.logprob = read.logprob(0);
    token.top_logprobs = std::move(read.token.top_logprobs);
    for (const TokenLogprob& top : token.top_logprobs) {
      if (top.token_id == token.token_id) token.logprob = top.logprob;  // The same number, to the last bit.
    }
  }
  return absl::OkStatus();
}

void ContinuousBatcher::FinishPrefill(Sequence& sequence, SegmentOutput& output) {
  sequence.prefill_done = now_();
  sequence.timings.prefill_seconds = SecondsBetween(sequence.admitted, sequence.prefill_done);
  if (metrics_) metrics_->CountPromptTokens(sequence.prompt_length());
  // Before anything is compared, optimized or stored for what is no number.
  if (!output.readout.status.ok()) return Finish(sequence, output.readout.status, FinishReason::kLength);
  if (sequence.reads_prompt()) sequence.request.sink->OnPrompt(std::move(sequence.prompt_tokens));
  sequence.prompt_readout = std::move(output.readout);
  sequence.capture = std::move(output.capture);
  absl::Time ready = sequence.prefill_done;
  if (sequence.request.on_prefilled) {
    auto task = sequence.request.on_prefilled(sequence.capture, sequence.prompt_readout);
    ready = now_();
    sequence.timings.optimization_seconds += SecondsBetween(sequence.prefill_done, ready);
    if (!task.ok()) return Finish(sequence, task.status(), FinishReason::kLength);
    sequence.task = *std::move(task);
  }
  if (sequence.task) {
    sequence.stage = Stage::kOptimizing;
    sequence.timings.optimized = true;
  } else {
    AfterOptimization(sequence, ready);
  }
}

// Optimization gets a share of the time that forward passes take, small beside running streams. What a long unit took
// too much is made up for in the steps that follow; what was not needed is not saved up.
void ContinuousBatcher::OptimizeBeside(double forward_seconds) {
  const bool streams = std::any_of(places_.running().begin(), places_.running().end(),
                                   [](const SequencePtr& s) { return s->stage == Stage::kDecode; });
  optimization_credit_ += (streams ? kShareBesideStreams : kShareBesidePrompts) * forward_seconds;
  while (optimization_credit_ > 0) {
    const absl::Time start = now_();
    const bool found = OptimizeOnce();
    optimization_credit_ -= SecondsBetween(start, now_());
    if (!found) optimization_credit_ = 0;
  }
}

// Tasks work while what they hold fits together, first come first granted; the first even if it does not. What was
// preempted holds its own still. Learning was given memory of its own.
void ContinuousBatcher::GrantWork() {
  int64_t granted = 0, learning = 0;
  const auto count = [&](const SequencePtr& s) {
    if (s->stage != Stage::kOptimizing || !s->work_granted) return;
    (s->request.learning ? learning : granted) += s->task->memory_bytes();
  };
  std::for_each(places_.running().begin(), places_.running().end(), count);
  std::for_each(places_.waiting().begin(), places_.waiting().end(), count);
  bool full = false;
  for (const SequencePtr& s : places_.running()) {
    if (s->stage != Stage::kOptimizing || s->work_granted) continue;
    const int64_t needed = s->task->memory_bytes();
    full = full || (!s->request.learning && granted > 0 && granted + needed > limits_.work_memory_bytes);
    if (full && !s->request.learning) continue;
    s->work_granted = true;
    (s->request.learning ? learning : granted) += needed;
  }
  if (metrics_) metrics_->SetWorkMemory(granted + learning);
}

// A part of one unit; false: there is none.
bool ContinuousBatcher::OptimizeOnce() {
  GrantWork();
  OptimizationUnit* const unit = units_.Next(places_.running());
  if (unit == nullptr) return false;
  if (metrics_) metrics_->CountEngineStep(Metrics::Work::kOptimization);
  const int64_t full_pass = int64_t{limits_.prefill_tokens_per_step} * model_->shape().layers;
  for (const OptimizationUnits::Outcome& outcome : units_.Advance(unit, full_pass, *model_, now_)) {
    Sequence& sequence = *outcome.sequence;
    if (!outcome.finished.ok()) {
      Finish(sequence, outcome.finished.status(), FinishReason::kLength);
    } else if (*outcome.finished) {
      sequence.work_granted = false;
      TakePathway(sequence);
    }
  }
  return true;
}

void ContinuousBatcher::TakePathway(Sequence& sequence) {
  if (const std::shared_ptr<const RoutingOverride> found = sequence.task->routing()) {
    auto placed = model_->PlaceRouting(*found);
    if (!placed.ok()) return Finish(sequence, placed.status(), FinishReason::kLength);
    sequence.routing = *std::move(placed);
  }
  AfterOptimization(sequence, now_());
}

// Without a new pathway the prompt's own readout stands, so that a plain request and a reverted one are the same
// computation.
void ContinuousBatcher::AfterOptimization(Sequence& sequence, absl::Time ready) {
  sequence.ready = ready;
  const double both = SecondsBetween(sequence.prefill_done, ready);
  sequence.timings.optimization_wait_seconds = std::max(0.0, both - sequence.timings.optimization_seconds);
  if (sequence.routing) {
    Resume(sequence);
  } else {
    BeginAnswer(sequence, sequence.prompt_readout);
  }
}

void ContinuousBatcher::TakeResumed(Sequence& sequence, const Readout& readout) {
  if (!sequence.routing) return BeginAnswer(sequence, sequence.prompt_readout);
  if (!readout.status.ok()) return Finish(sequence, readout.status, FinishReason::kLength);
  if (!sequence.scoring() && !sequence.task->AcceptAnswer(readout.largest_probability())) return Revert(sequence);
  BeginAnswer(sequence, readout);
}

void ContinuousBatcher::BeginAnswer(Sequence& sequence, const Readout& readout) {
  if (sequence.scoring()) return StartScoring(sequence, readout);
  TellPromptRoutes(sequence);
  sequence.stage = Stage::kDecode;
  TakeToken(sequence, readout);
}

// What a pathway governs of the prompt runs again: its last token from the first critical layer, the others from below.
void ContinuousBatcher::Resume(Sequence& sequence) {
  sequence.stage = Stage::kResume;
  sequence.cached = std::min(sequence.cached, sequence.first_governed_position());
}

// So that keys and values are the model's own again.
void ContinuousBatcher::Revert(Sequence& sequence) {
  sequence.routing.reset();
  sequence.scores.clear();
  sequence.scored = 0;
  Resume(sequence);
}

void ContinuousBatcher::TakeToken(Sequence& sequence, const Readout& readout) {
  const SamplingParams& sampling = sequence.request.sampling;
  const SampledToken& token = readout.token;
  if (!readout.status.ok()) return Finish(sequence, readout.status, FinishReason::kLength);
  const absl::Time now = now_();
  if (sequence.generated == 0) {
    sequence.timings.time_to_first_token_seconds = SecondsBetween(sequence.request.arrival, now);
    sequence.timings.first_token_seconds = SecondsBetween(sequence.ready, now);
    if (metrics_) metrics_->ObserveTimeToFirstToken(sequence.timings.time_to_first_token_seconds);
  } else if (metrics_) {
    metrics_->ObserveInterTokenLatency(SecondsBetween(sequence.last_token, now));
  }
  sequence.last_token = now;
  if (!sampling.ignore_eos && IsEndOfSequence(model_->shape(), token.token_id)) {
    return Finish(sequence, absl::OkStatus(), FinishReason::kStop);
  }
  if (sequence.matcher != nullptr) {
    const absl::Status accepted = sequence.matcher->Accept(token.token_id);
    if (!accepted.ok()) return Finish(sequence, accepted, FinishReason::kLength);
  }
  sequence.tokens.push_back(token.token_id);
  ++sequence.generated;
  ++generated_tokens_;
  if (metrics_) metrics_->CountGeneratedTokens(1);
  if (!sequence.request.sink->OnToken(token)) return Finish(sequence, absl::OkStatus(), FinishReason::kStop);
  if (sequence.matcher != nullptr) {
    const absl::StatusOr<bool> at_end = sequence.matcher->IsAtEnd();
    if (!at_end.ok()) return Finish(sequence, at_end.status(), FinishReason::kLength);
    if (*at_end) return Finish(sequence, absl::OkStatus(), FinishReason::kStop);
  }
  if (sequence.generated == sampling.max_tokens) Finish(sequence, absl::OkStatus(), FinishReason::kLength);
}

// The last prompt token's readout scores the first token of every continuation; only longer ones need rows of their
// own.
void ContinuousBatcher::StartScoring(Sequence& sequence, const Readout& readout) {
  sequence.stage = Stage::kScore;
  for (size_t i = 0; i < sequence.first_tokens.size(); ++i) {
    const float first = readout.logprob(i);
    sequence.scores.push_back({first, sequence.first_tokens[i] == readout.likeliest, {first}});
    if (sequence.request.continuations[i].size() == 1) ++sequence.scored;
  }
  if (sequence.scored == sequence.scores.size()) FinishScoring(sequence);
}

// Rows of it that had to run again, since their blocks were given back, say what is known.
void ContinuousBatcher::TakeScore(Sequence& sequence, size_t continuation, int first_row, const SegmentOutput& output) {
  ContinuationScore& score = sequence.scores[continuation];
  score.routes.Put(output.routes, 0);
  const auto known = score.token_logprobs.size() - 1 - static_cast<size_t>(first_row);
  if (known >= output.target_logprobs.size()) return;
  const absl::Span<const float> gained = absl::MakeConstSpan(output.target_logprobs).subspan(known);
  for (float logprob : gained) score.log_likelihood += logprob;
  if (!std::isfinite(score.log_likelihood)) {
    return Finish(sequence,
                  NotANumberError(absl::StrCat("continuations[", continuation, "]: its log-likelihood is ",
                                               score.log_likelihood, ": the model's output is not finite")),
                  FinishReason::kLength);
  }
  score.is_greedy = score.is_greedy && output.targets_greedy;
  score.token_logprobs.insert(score.token_logprobs.end(), gained.begin(), gained.end());
  if (score.token_logprobs.size() < sequence.request.continuations[continuation].size()) return;
  if (++sequence.scored == sequence.scores.size()) FinishScoring(sequence);
}

void ContinuousBatcher::FinishScoring(Sequence& sequence) {
  if (sequence.routing && !sequence.task->AcceptScores(sequence.scores)) return Revert(sequence);
  TellPromptRoutes(sequence);
  sequence.request.sink->OnScores(std::move(sequence.scores));
  Finish(sequence, absl::OkStatus(), FinishReason::kStop);
}

void ContinuousBatcher::Finish(Sequence& sequence, const absl::Status& status, FinishReason reason) {
  if (sequence.stage == Stage::kEnded) return;
  const absl::Time now = now_();
  if (sequence.ready != absl::Time()) sequence.timings.decode_seconds = SecondsBetween(sequence.ready, now);
  sequence.stage = Stage::kEnded;
  units_.Leave(&sequence);
  sequence.task.reset();
  GiveBack(sequence, places_.pool());
  sequence.request.sink->OnFinished(status, reason, sequence.timings);
}

int64_t ContinuousBatcher::waiting_tokens() const {
  int64_t tokens = 0;
  for (const SequencePtr& sequence : places_.waiting()) tokens += sequence->prompt_length();
  return tokens;
}

void ContinuousBatcher::ReportGauges() {
  if (!metrics_) return;
  metrics_->SetRunning(running());
  metrics_->SetWaiting(waiting());
  metrics_->SetKvCacheUsage(static_cast<double>(places_.pool().held()) /
                            static_cast<double>(std::max<int64_t>(1, places_.pool().blocks())));
  // With nobody running nobody may hold a block.
  if (places_.running().empty()) metrics_->SetKvCacheLeakedBlocks(places_.pool().held());
}

}  // namespace c3po
