#include "server/scheduler/engine.h"

#include <algorithm>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/steady_time.h"

namespace c3po {

namespace {

constexpr absl::Duration kThroughputWindow = absl::Seconds(2), kThroughputSample = absl::Milliseconds(50);

// An exception of a task ends its own request.
class GuardedTask final : public OptimizationTask {
 public:
  explicit GuardedTask(std::shared_ptr<OptimizationTask> task) : task_(std::move(task)) {}
  absl::StatusOr<bool> Step(int64_t row_layers) override {
    if (!asking_.ok()) return asking_;
    return CatchEscapedOr<bool>(ThreadKind::kEngine, [&] { return task_->Step(row_layers); });
  }
  std::vector<Evaluation> AskAll() const override {
    std::vector<Evaluation> asked;
    asking_ = CatchEscapedIn(ThreadKind::kEngine, [&] { asked = task_->AskAll(); });
    return asking_.ok() ? asked : std::vector<Evaluation>();  // Step is called instead, and says why.
  }
  absl::StatusOr<bool> TellAll(absl::Span<const LossAndGradient> results, double seconds) override {
    return CatchEscapedOr<bool>(ThreadKind::kEngine, [&] { return task_->TellAll(results, seconds); });
  }
  int64_t memory_bytes() const override { return task_->memory_bytes(); }
  std::shared_ptr<const RoutingOverride> routing() const override { return task_->routing(); }
  bool AcceptAnswer(double largest_probability) override {
    return Accepts([&] { return task_->AcceptAnswer(largest_probability); });
  }
  bool AcceptScores(absl::Span<const ContinuationScore> scores) override {
    return Accepts([&] { return task_->AcceptScores(scores); });
  }

 private:
  static bool Accepts(absl::FunctionRef<bool()> asks) {
    bool accepted = false;
    return CatchEscapedIn(ThreadKind::kEngine, [&] { accepted = asks(); }).ok() && accepted;
  }

  const std::shared_ptr<OptimizationTask> task_;
  mutable absl::Status asking_;  // what AskAll threw
};

}  // namespace

// Passes everything on, and gives the request's place back when it ends. An exception of the sink ends its request.
class Engine::CountedSink final : public SequenceSink {
 public:
  CountedSink(std::shared_ptr<SequenceSink> sink, std::atomic<int>& pending)
      : sink_(std::move(sink)), pending_(pending) {}
  ~CountedSink() override {
    // An exception lost it on its way.
    if (!finished_) OnFinished(absl::InternalError("the request was lost"), FinishReason::kLength, SequenceTimings());
  }
  bool OnToken(const SampledToken& token) override {
    bool wants_more = false;
    Note(CatchEscapedIn(ThreadKind::kEngine, [&] { wants_more = sink_->OnToken(token); }));
    return failure_.ok() && wants_more;
  }
  void OnPrompt(std::vector<SampledToken> prompt) override {
    Note(CatchEscapedIn(ThreadKind::kEngine, [&] { sink_->OnPrompt(std::move(prompt)); }));
  }
  void OnScores(std::vector<ContinuationScore> scores) override {
    Note(CatchEscapedIn(ThreadKind::kEngine, [&] { sink_->OnScores(std::move(scores)); }));
  }
  void OnRoutes(RoutedExperts routes) override {
    Note(CatchEscapedIn(ThreadKind::kEngine, [&] { sink_->OnRoutes(std::move(routes)); }));
  }
  void OnFinished(const absl::Status& status, FinishReason reason, const SequenceTimings& timings) override {
    finished_ = true;
    pending_.fetch_sub(1);
    if (status.ok()) {
      Note(CatchEscapedIn(ThreadKind::kEngine, [&] {
        if (failure_.ok()) sink_->OnFinished(status, reason, timings);
      }));
      if (failure_.ok()) return;
    }
    // Also a sink that did not get through its end hears of one: with a failure it has less to do.
    const absl::Status end = status.ok() ? failure_ : status;
    (void)CatchEscapedIn(ThreadKind::kEngine, [&] { sink_->OnFinished(end, reason, timings); });
  }

 private:
  void Note(const absl::Status& status) {
    if (failure_.ok()) failure_ = status;
  }

  const std::shared_ptr<SequenceSink> sink_;
  std::atomic<int>& pending_;
  absl::Status failure_;  // An exception of the sink's.
  bool finished_ = false;
};

Engine::Engine(ModelRunner* model, const BatcherLimits& limits, int pending_max, Metrics* metrics)
    : batcher_(model, limits, metrics), pending_max_(pending_max), thread_([this] { Run(); }) {}

Engine::~Engine() { Stop(absl::ZeroDuration()); }

absl::Status Engine::Submit(SequenceRequest request) {
  const absl::MutexLock lock(&mu_);
  if (stopping_) return absl::UnavailableError("the server is shutting down");
  if (pending_.load() >= pending_max_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the queue is full: ", pending_max_, " requests are waiting or running"));
  }
  inbox_.push_back(Counted(std::move(request)));
  return absl::OkStatus();
}

void Engine::Continue(SequenceRequest request) { batcher_.Add(Counted(std::move(request))); }

SequenceRequest Engine::Counted(SequenceRequest request) {
  if (pending_.fetch_add(1) == 0) progress_nanoseconds_ = absl::ToUnixNanos(SteadyNow());
  request.sink = std::make_shared<CountedSink>(std::move(request.sink), pending_);
  using TaskOrError = absl::StatusOr<std::shared_ptr<OptimizationTask>>;
  if (request.on_prefilled) {
    request.on_prefilled = [inner = std::move(request.on_prefilled)](const PromptCapture& capture,
                                                                     const Readout& next) -> TaskOrError {
      TaskOrError task =
          CatchEscapedOr<std::shared_ptr<OptimizationTask>>(ThreadKind::kEngine, [&] { return inner(capture, next); });
      if (task.ok() && *task != nullptr) task = std::make_shared<GuardedTask>(*std::move(task));
      return task;
    };
  }
  return request;
}

void Engine::Stop(absl::Duration limit) {
  {
    const absl::MutexLock lock(&mu_);
    stopping_ = true;
    abort_at_ = std::min(abort_at_, SteadyNow() + limit);
  }
  if (thread_.joinable()) thread_.join();
}

EngineLoad Engine::load() const {
  EngineLoad load;
  {
    const absl::MutexLock lock(&load_mutex_);
    load = load_;
  }
  load.waiting = std::max<int64_t>(0, pending() - load.running);  // Those in the inbox too.
  const absl::Duration since = absl::Nanoseconds(absl::ToUnixNanos(SteadyNow()) - progress_nanoseconds_.load());
  if (since > kThroughputWindow) load.tokens_per_second = 0;
  return load;
}

void Engine::NoteLoad() {
  const absl::Time now = SteadyNow();
  const int64_t generated = batcher_.generated_tokens();
  if (generated_.empty() || now - generated_.back().first >= kThroughputSample) generated_.emplace_back(now, generated);
  while (generated_.size() > 1 && now - generated_.front().first > kThroughputWindow) generated_.pop_front();
  const double seconds = absl::ToDoubleSeconds(now - generated_.front().first);
  const auto tokens = static_cast<double>(generated - generated_.front().second);
  const absl::MutexLock lock(&load_mutex_);
  load_.running = batcher_.running();
  load_.waiting_tokens = batcher_.waiting_tokens();
  load_.kv_tokens_used = batcher_.kv_tokens_used();
  load_.tokens_per_second = seconds > 0 ? tokens / seconds : 0;
}

absl::Duration Engine::StalledFor() const {
  if (pending() == 0) return absl::ZeroDuration();
  return absl::Nanoseconds(absl::ToUnixNanos(SteadyNow()) - progress_nanoseconds_.load());
}

void Engine::Run() {
  bool busy = false;
  while (true) {
    std::vector<SequenceRequest> arrived;
    bool stopping = false, abort = false;
    {
      const absl::MutexLock lock(&mu_);
      const auto awake = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stopping_ || !inbox_.empty(); };
      if (!busy) mu_.Await(absl::Condition(&awake));
      arrived.swap(inbox_);
      stopping = stopping_;
      abort = SteadyNow() >= abort_at_;
    }
    const absl::Status escaped = CatchEscapedIn(ThreadKind::kEngine, [&] {
      for (SequenceRequest& request : arrived) batcher_.Add(std::move(request));
      if (abort) batcher_.AbortAll(absl::UnavailableError("the server is shutting down"));
      busy = batcher_.Step();
      NoteLoad();
    });
    if (!escaped.ok()) {
      // Whose fault it was is not known, nor how far the step came: what is in hand ends, what comes next is served.
      for (SequenceRequest& request : arrived) {
        if (request.sink) request.sink->OnFinished(escaped, FinishReason::kLength, SequenceTimings());
      }
      busy = !CatchEscapedIn(ThreadKind::kEngine, [&] { batcher_.AbortAll(escaped); }).ok();
    }
    progress_nanoseconds_ = absl::ToUnixNanos(SteadyNow());
    if (stopping && !busy) return;
  }
}

}  // namespace c3po
