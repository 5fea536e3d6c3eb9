#include "server/scheduler/continuous_batcher.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "server/sampling/sampler.h"
#include "server/scheduler/admission_order.h"

namespace c3po {

struct ContinuousBatcher::Sequence {
  enum class Stage { kPrefill, kOptimizing, kResume, kDecode, kScore, kEnded };

  SequenceRequest request;
  Stage stage = Stage::kPrefill;
  std::unique_ptr<SequenceCache> cache;
  int capacity = 0;             // positions it reserves
  int prefilled = 0;            // prompt tokens in the cache
  std::vector<int32_t> tokens;  // prompt and generated
  int generated = 0;

  PromptCapture capture;
  std::vector<float> prompt_logits;
  std::shared_ptr<OptimizationTask> task;
  std::shared_ptr<const RoutingOverride> routing;
  std::vector<ContinuationScore> scores;
  std::vector<float> last_prompt_logprobs;  // log p(first token of a continuation), for all of the vocabulary

  absl::Time submitted, admitted, prefill_done, ready, last_token;
  SequenceTimings timings;

  int prompt_length() const { return static_cast<int>(request.prompt.size()); }
  int last_prompt_position() const { return prompt_length() - 1; }
  bool scoring() const { return !request.continuations.empty(); }
  bool cancelled() const { return request.cancelled && request.cancelled->load(std::memory_order_relaxed); }
  // The pathway is data of the rows it governs.
  void Route(Segment& segment) const {
    segment.routing = routing;
    segment.override_start = last_prompt_position();
    if (request.rule == ApplicationRule::kLastPromptToken) segment.override_end = prompt_length();
  }
};

namespace {

double SecondsBetween(absl::Time a, absl::Time b) { return absl::ToDoubleSeconds(b - a); }

// Generation writes all but the last generated token; scoring all but the last token of the longest continuation.
int CapacityOf(const SequenceRequest& request) {
  size_t more = static_cast<size_t>(request.sampling.max_tokens);
  if (!request.continuations.empty()) {
    more = 0;
    for (const auto& continuation : request.continuations) more = std::max(more, continuation.size());
  }
  return static_cast<int>(request.prompt.size() + more);
}

std::vector<float> LogSoftmax(const std::vector<float>& logits) {
  const float top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float logit : logits) sum += std::exp(double{logit} - top);
  const double shift = top + std::log(sum);
  std::vector<float> result;
  result.reserve(logits.size());
  for (float logit : logits) result.push_back(static_cast<float>(logit - shift));
  return result;
}

bool IsEndOfSequence(const ModelShape& shape, int32_t token) {
  return std::find(shape.eos_token_ids.begin(), shape.eos_token_ids.end(), token) != shape.eos_token_ids.end();
}

}  // namespace

ContinuousBatcher::ContinuousBatcher(ModelRunner* model, const BatcherLimits& limits, Metrics* metrics)
    : model_(model), limits_(limits), metrics_(metrics) {}

ContinuousBatcher::~ContinuousBatcher() = default;

void ContinuousBatcher::Add(SequenceRequest request) {
  auto sequence = std::make_unique<Sequence>();
  sequence->capacity = CapacityOf(request);
  sequence->tokens = request.prompt;
  sequence->request = std::move(request);
  sequence->submitted = absl::Now();
  if (sequence->request.arrival == absl::InfinitePast()) sequence->request.arrival = sequence->submitted;
  if (sequence->capacity > limits_.kv_tokens_max) {
    Finish(*sequence,
           absl::ResourceExhaustedError(absl::StrCat("the request needs ", sequence->capacity,
                                                     " cache positions; the server has ", limits_.kv_tokens_max)),
           FinishReason::kLength);
    return;
  }
  waiting_.push_back(std::move(sequence));
}

bool ContinuousBatcher::Step() {
  const absl::Time start = absl::Now();
  DropEnded();
  Admit();
  ReportGauges();
  if (running_.empty()) return !waiting_.empty();
  RunForward();
  OptimizeOne();
  DropEnded();
  ReportGauges();
  if (metrics_) metrics_->ObserveEngineStep(SecondsBetween(start, absl::Now()));
  return !running_.empty() || !waiting_.empty();
}

void ContinuousBatcher::AbortAll(const absl::Status& status) {
  for (SequencePtr& sequence : waiting_) Finish(*sequence, status, FinishReason::kLength);
  for (SequencePtr& sequence : running_) Finish(*sequence, status, FinishReason::kLength);
  DropEnded();
  ReportGauges();
}

// Ends what was cancelled or is late, and gives the room of everything that ended to others.
void ContinuousBatcher::DropEnded() {
  const absl::Time now = absl::Now();
  const auto check = [&](Sequence& sequence) {
    if (sequence.stage == Sequence::Stage::kEnded) return;
    if (sequence.cancelled()) {
      Finish(sequence, absl::CancelledError("the client cancelled the request"), FinishReason::kLength);
    } else if (now >= sequence.request.deadline) {
      Finish(sequence, absl::DeadlineExceededError("the deadline passed while the request was being served"),
             FinishReason::kLength);
    }
  };
  const auto ended = [](const SequencePtr& sequence) { return sequence->stage == Sequence::Stage::kEnded; };
  for (SequencePtr& sequence : waiting_) check(*sequence);
  for (SequencePtr& sequence : running_) {
    check(*sequence);
    if (ended(sequence)) kv_tokens_used_ -= sequence->capacity;
  }
  waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), ended), waiting_.end());
  running_.erase(std::remove_if(running_.begin(), running_.end(), ended), running_.end());
}

size_t ContinuousBatcher::NextToAdmit() const {
  AdmissionOrder order;
  for (const SequencePtr& sequence : running_) order.CountRunning(sequence->request.caller);
  for (size_t i = 0; i < waiting_.size(); ++i) order.Offer(i, waiting_[i]->request);
  return order.next();
}

void ContinuousBatcher::Admit() {
  while (!waiting_.empty() && static_cast<int>(running_.size()) < limits_.sequences_max) {
    const auto next = waiting_.begin() + static_cast<std::ptrdiff_t>(NextToAdmit());
    if (kv_tokens_used_ + (*next)->capacity > limits_.kv_tokens_max) return;  // Nobody overtakes what is too large.
    SequencePtr sequence = std::move(*next);
    waiting_.erase(next);
    auto cache = model_->NewSequence(sequence->capacity);
    if (!cache.ok()) {
      Finish(*sequence, cache.status(), FinishReason::kLength);
      continue;
    }
    sequence->cache = *std::move(cache);
    sequence->admitted = absl::Now();
    sequence->timings.queue_seconds = SecondsBetween(sequence->submitted, sequence->admitted);
    if (metrics_) metrics_->ObserveQueueTime(sequence->timings.queue_seconds);
    kv_tokens_used_ += sequence->capacity;
    running_.push_back(std::move(sequence));
  }
}

std::vector<Segment> ContinuousBatcher::PlanSegments(std::vector<Sequence*>& owners) {
  using Stage = Sequence::Stage;
  std::vector<Segment> segments;
  int prefill_budget = limits_.prefill_tokens_per_step;
  for (const SequencePtr& sequence : running_) {
    Sequence& s = *sequence;
    Segment segment;
    segment.cache = s.cache.get();
    if (s.stage == Stage::kPrefill) {
      const int count = std::min(prefill_budget, s.prompt_length() - s.prefilled);
      if (count == 0) continue;
      prefill_budget -= count;
      segment.start = s.prefilled;
      segment.tokens.assign(s.request.prompt.begin() + s.prefilled, s.request.prompt.begin() + s.prefilled + count);
      const bool last_chunk = s.prefilled + count == s.prompt_length();
      segment.entry_layer = s.request.entry_layer;
      if (s.request.on_prefilled) segment.mean_layer = s.request.mean_layer;
      segment.want_capture = s.request.on_prefilled && last_chunk;
      segment.want_logits = last_chunk;
    } else if (s.stage == Stage::kResume) {
      segment.start = s.last_prompt_position();
      segment.tokens = {s.request.prompt.back()};
      segment.resume = true;
      segment.entry_layer = s.request.entry_layer;
      segment.entry_hidden = s.capture.entry_hidden;
      segment.want_logits = true;
      s.Route(segment);
    } else if (s.stage == Stage::kDecode) {
      segment.start = static_cast<int>(s.tokens.size()) - 1;
      segment.tokens = {s.tokens.back()};
      segment.want_logits = true;
      s.Route(segment);
    } else if (s.stage == Stage::kScore) {
      const std::vector<int32_t>& continuation = s.request.continuations[s.scores.size() - 1];
      segment.start = s.prompt_length();
      segment.tokens.assign(continuation.begin(), continuation.end() - 1);
      segment.targets.assign(continuation.begin() + 1, continuation.end());
      s.Route(segment);
    } else {
      continue;
    }
    segments.push_back(std::move(segment));
    owners.push_back(&s);
  }
  return segments;
}

void ContinuousBatcher::RunForward() {
  std::vector<Sequence*> owners;
  const std::vector<Segment> segments = PlanSegments(owners);
  if (segments.empty()) return;
  if (metrics_) {
    for (const auto stage : {Sequence::Stage::kPrefill, Sequence::Stage::kDecode}) {
      if (std::any_of(owners.begin(), owners.end(), [stage](Sequence* s) { return s->stage == stage; })) {
        metrics_->CountEngineStep(stage == Sequence::Stage::kPrefill ? Metrics::Work::kPrefill
                                                                     : Metrics::Work::kDecode);
      }
    }
  }
  auto outputs = model_->Forward(segments);
  for (size_t i = 0; i < owners.size(); ++i) {
    if (!outputs.ok()) {
      Finish(*owners[i], outputs.status(), FinishReason::kLength);
      continue;
    }
    if (owners[i]->stage == Sequence::Stage::kPrefill)
      owners[i]->prefilled += static_cast<int>(segments[i].tokens.size());
    Distribute(*owners[i], std::move((*outputs)[i]));
  }
}

void ContinuousBatcher::Distribute(Sequence& sequence, SegmentOutput output) {
  switch (sequence.stage) {
    case Sequence::Stage::kPrefill:
      if (sequence.prefilled == sequence.prompt_length()) FinishPrefill(sequence, std::move(output));
      return;
    case Sequence::Stage::kResume:
      return TakeResumed(sequence, output.logits);
    case Sequence::Stage::kDecode:
      return SampleNext(sequence, output.logits);
    case Sequence::Stage::kScore:
      return TakeScore(sequence, output);
    case Sequence::Stage::kOptimizing:
    case Sequence::Stage::kEnded:
      return;
  }
}

void ContinuousBatcher::FinishPrefill(Sequence& sequence, SegmentOutput output) {
  sequence.prefill_done = absl::Now();
  sequence.timings.prefill_seconds = SecondsBetween(sequence.admitted, sequence.prefill_done);
  if (metrics_) {
    metrics_->ObservePrefillTime(sequence.timings.prefill_seconds);
    metrics_->CountPromptTokens(sequence.prompt_length());
  }
  sequence.prompt_logits = std::move(output.logits);
  sequence.capture = std::move(output.capture);
  if (sequence.request.on_prefilled) {
    auto task = sequence.request.on_prefilled(sequence.capture, sequence.prompt_logits);
    sequence.timings.optimization_seconds += SecondsBetween(sequence.prefill_done, absl::Now());
    if (!task.ok()) return Finish(sequence, task.status(), FinishReason::kLength);
    sequence.task = *std::move(task);
  }
  if (sequence.task) {
    sequence.stage = Sequence::Stage::kOptimizing;
  } else {
    AfterOptimization(sequence);
  }
}

void ContinuousBatcher::OptimizeOne() {
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[(next_to_optimize_ + i) % running_.size()];
    if (sequence.stage != Sequence::Stage::kOptimizing) continue;
    next_to_optimize_ = (next_to_optimize_ + i + 1) % running_.size();
    const absl::Time start = absl::Now();
    const absl::StatusOr<bool> finished = sequence.task->Step();
    sequence.timings.optimization_seconds += SecondsBetween(start, absl::Now());
    if (metrics_) metrics_->CountEngineStep(Metrics::Work::kOptimization);
    if (!finished.ok()) return Finish(sequence, finished.status(), FinishReason::kLength);
    if (*finished) {
      sequence.routing = sequence.task->routing();
      AfterOptimization(sequence);
    }
    return;
  }
}

// Without a new pathway the prompt's own logits stand, so that a plain request and a reverted one are the same
// computation.
void ContinuousBatcher::AfterOptimization(Sequence& sequence) {
  sequence.ready = absl::Now();
  if (sequence.task) sequence.timings.optimization_wall_seconds = SecondsBetween(sequence.prefill_done, sequence.ready);
  if (sequence.routing) {
    sequence.stage = Sequence::Stage::kResume;
  } else {
    BeginAnswer(sequence, sequence.prompt_logits);
  }
}

void ContinuousBatcher::TakeResumed(Sequence& sequence, const std::vector<float>& logits) {
  if (!sequence.routing) return BeginAnswer(sequence, sequence.prompt_logits);
  if (!sequence.scoring() && !sequence.task->AcceptLogits(logits)) return Revert(sequence);
  BeginAnswer(sequence, logits);
}

void ContinuousBatcher::BeginAnswer(Sequence& sequence, const std::vector<float>& logits) {
  if (sequence.scoring()) return StartScoring(sequence, logits);
  sequence.stage = Sequence::Stage::kDecode;
  SampleNext(sequence, logits);
}

// The last prompt token runs again, so that its keys and values are the model's own.
void ContinuousBatcher::Revert(Sequence& sequence) {
  sequence.routing.reset();
  sequence.scores.clear();
  sequence.stage = Sequence::Stage::kResume;
}

void ContinuousBatcher::SampleNext(Sequence& sequence, const std::vector<float>& logits) {
  const SamplingParams& sampling = sequence.request.sampling;
  const auto token = Sample(logits, sampling, sequence.tokens, sequence.generated);
  if (!token.ok()) return Finish(sequence, token.status(), FinishReason::kLength);
  const absl::Time now = absl::Now();
  if (sequence.generated == 0) {
    sequence.timings.time_to_first_token_seconds = SecondsBetween(sequence.request.arrival, now);
    if (metrics_) metrics_->ObserveTimeToFirstToken(sequence.timings.time_to_first_token_seconds);
  } else if (metrics_) {
    metrics_->ObserveInterTokenLatency(SecondsBetween(sequence.last_token, now));
  }
  sequence.last_token = now;
  if (!sampling.ignore_eos && IsEndOfSequence(model_->shape(), token->token_id)) {
    return Finish(sequence, absl::OkStatus(), FinishReason::kStop);
  }
  sequence.tokens.push_back(token->token_id);
  ++sequence.generated;
  if (metrics_) metrics_->CountGeneratedTokens(1);
  if (!sequence.request.sink->OnToken(*token)) return Finish(sequence, absl::OkStatus(), FinishReason::kStop);
  if (sequence.generated == sampling.max_tokens) Finish(sequence, absl::OkStatus(), FinishReason::kLength);
}

// The last prompt token's logits score the first token of every continuation; only longer ones need rows of their own.
void ContinuousBatcher::StartScoring(Sequence& sequence, const std::vector<float>& logits) {
  sequence.stage = Sequence::Stage::kScore;
  sequence.last_prompt_logprobs = LogSoftmax(logits);
  NextScore(sequence);
}

// Begins continuations until one needs a forward pass, or all are scored.
void ContinuousBatcher::NextScore(Sequence& sequence) {
  const std::vector<float>& logprobs = sequence.last_prompt_logprobs;
  const auto greedy = std::max_element(logprobs.begin(), logprobs.end()) - logprobs.begin();
  while (sequence.scores.size() < sequence.request.continuations.size()) {
    const std::vector<int32_t>& continuation = sequence.request.continuations[sequence.scores.size()];
    const float first = logprobs[static_cast<size_t>(continuation.front())];
    sequence.scores.push_back({first, continuation.front() == greedy, {first}});
    if (continuation.size() > 1) return;
  }
  if (sequence.routing && !sequence.task->AcceptScores(sequence.scores)) return Revert(sequence);
  sequence.request.sink->OnScores(std::move(sequence.scores));
  Finish(sequence, absl::OkStatus(), FinishReason::kStop);
}

void ContinuousBatcher::TakeScore(Sequence& sequence, const SegmentOutput& output) {
  ContinuationScore& score = sequence.scores.back();
  for (float logprob : output.target_logprobs) score.log_likelihood += logprob;
  score.is_greedy = score.is_greedy && output.targets_greedy;
  score.token_logprobs.insert(score.token_logprobs.end(), output.target_logprobs.begin(), output.target_logprobs.end());
  NextScore(sequence);
}

void ContinuousBatcher::Finish(Sequence& sequence, const absl::Status& status, FinishReason reason) {
  if (sequence.stage == Sequence::Stage::kEnded) return;
  const absl::Time now = absl::Now();
  if (sequence.ready != absl::Time()) sequence.timings.decode_seconds = SecondsBetween(sequence.ready, now);
  sequence.stage = Sequence::Stage::kEnded;
  sequence.task.reset();
  sequence.cache.reset();
  if (metrics_) {
    const bool dropped = absl::IsCancelled(status) || absl::IsDeadlineExceeded(status);
    metrics_->CountFinished(!status.ok() ? (dropped ? Metrics::FinishedReason::kAbort : Metrics::FinishedReason::kError)
                            : reason == FinishReason::kStop ? Metrics::FinishedReason::kStop
                                                            : Metrics::FinishedReason::kLength);
    metrics_->ObserveRequestLatency(SecondsBetween(sequence.request.arrival, now));
    if (status.ok()) metrics_->ObserveDecodeTime(sequence.timings.decode_seconds);
  }
  sequence.request.sink->OnFinished(status, reason, sequence.timings);
}

void ContinuousBatcher::ReportGauges() {
  if (!metrics_) return;
  metrics_->SetRunning(running());
  metrics_->SetWaiting(waiting());
  metrics_->SetKvCacheUsage(static_cast<double>(kv_tokens_used_) / static_cast<double>(limits_.kv_tokens_max));
}

}  // namespace c3po
