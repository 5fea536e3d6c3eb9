#include "server/scheduler/engine.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/steady_time.h"

namespace c3po {

// Passes everything on, and gives the request's place back when it ends.
class Engine::CountedSink final : public SequenceSink {
 public:
  CountedSink(std::shared_ptr<SequenceSink> sink, std::atomic<int>& pending)
      : sink_(std::move(sink)), pending_(pending) {}
  bool OnToken(const SampledToken& token) override { return sink_->OnToken(token); }
  void OnScores(std::vector<ContinuationScore> scores) override { sink_->OnScores(std::move(scores)); }
  void OnFinished(const absl::Status& status, FinishReason reason, const SequenceTimings& timings) override {
    pending_.fetch_sub(1);
    sink_->OnFinished(status, reason, timings);
  }

 private:
  const std::shared_ptr<SequenceSink> sink_;
  std::atomic<int>& pending_;
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
    for (SequenceRequest& request : arrived) batcher_.Add(std::move(request));
    if (abort) batcher_.AbortAll(absl::UnavailableError("the server is shutting down"));
    busy = batcher_.Step();
    progress_nanoseconds_ = absl::ToUnixNanos(SteadyNow());
    if (stopping && !busy) return;
  }
}

}  // namespace c3po
