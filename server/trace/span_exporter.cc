#include "server/trace/span_exporter.h"

#include <algorithm>
#include <utility>

#include "index/base/escaped_exception.h"
#include "index/base/steady_time.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

constexpr double kLeastJitter = 0.8, kMostJitter = 1.2;  // Servers that lost one receiver do not come back at once.

}  // namespace

SpanExporter::SpanExporter(std::unique_ptr<SpanSender> sender, std::string endpoint, const ExportLimits& limits,
                           Metrics* metrics)
    : sender_(std::move(sender)),
      endpoint_(std::move(endpoint)),
      limits_(limits),
      metrics_(metrics),
      queue_(limits),
      thread_([this] { Run(); }) {}

SpanExporter::~SpanExporter() { Stop(); }

void SpanExporter::Add(std::vector<Span> spans) {
  const size_t count = spans.size();
  bool taken = false, due = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    // The thread is woken by the first that waits, for its time, and when a batch is full.
    const absl::Time before = queue_.Due();
    taken = !ending_ && queue_.Add(std::move(spans), SteadyNow());
    due = taken && queue_.Due() < before;
  }
  if (due) changed_.notify_one();
  if (!taken) Drop(count);
}

void SpanExporter::Stop() {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!ending_) {
      ending_ = true;
      flush_end_ = SteadyNow() + limits_.flush_max;
      changed_.notify_one();
    }
    done_changed_.wait_for(lock, absl::ToChronoNanoseconds(limits_.flush_max), [this] { return done_; });
  }
  sender_->Cancel();
  if (thread_.joinable()) thread_.join();
}

void SpanExporter::Run() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    if (ending_ && (queue_.Due() == absl::InfiniteFuture() || SteadyNow() >= flush_end_)) break;
    const absl::Duration left = queue_.Due() - SteadyNow();
    if (ending_ || left <= absl::ZeroDuration()) {
      if (!SendOnce(lock)) break;
    } else if (left == absl::InfiniteDuration()) {
      changed_.wait(lock);
    } else {
      changed_.wait_for(lock, absl::ToChronoNanoseconds(left));
    }
  }
  const size_t left = queue_.spans();
  done_ = true;
  lock.unlock();
  if (left > 0) Drop(left);
  done_changed_.notify_all();
}

bool SpanExporter::SendOnce(std::unique_lock<std::mutex>& lock) {
  std::vector<Span> batch = queue_.Take();
  absl::Duration limit = limits_.send_max;
  if (ending_) limit = std::min(limit, std::max(absl::ZeroDuration(), flush_end_ - SteadyNow()));
  lock.unlock();
  SendOutcome outcome;
  const auto send = [&] { outcome = sender_->Send(batch, limit); };
  if (const absl::Status escaped = CatchEscapedIn(ThreadKind::kPeriodic, send); !escaped.ok()) outcome = {escaped};
  const size_t count = batch.size();
  const bool again = !outcome.status.ok() && outcome.retry;
  if (outcome.status.ok()) {
    const int64_t rejected = std::clamp<int64_t>(outcome.rejected, 0, static_cast<int64_t>(count));
    if (metrics_ != nullptr) metrics_->CountTraceSpans(/*exported=*/true, static_cast<int64_t>(count) - rejected);
    Drop(static_cast<size_t>(rejected));
  } else if (!again) {
    Drop(count);
  }
  Tell(outcome.status);
  lock.lock();
  if (again) {
    const double jitter = std::uniform_real_distribution<double>(kLeastJitter, kMostJitter)(jitter_);
    queue_.Retry(std::move(batch), SteadyNow(), outcome.retry_after, jitter);
  } else {
    queue_.Finished(count);
  }
  return outcome.status.ok() || !ending_;
}

void SpanExporter::Tell(const absl::Status& status) {
  const int64_t dropped = dropped_.load();
  const absl::Time now = SteadyNow();
  if (!status.ok() && !failing_) {
    Log(LogLevel::kWarning, "traces_not_sent", "", {{"endpoint", endpoint_}, {"reason", status.message()}});
  } else if (status.ok() && failing_) {
    Log(LogLevel::kInfo, "traces_sent", "", {{"endpoint", endpoint_}, {"spans_dropped", dropped - dropped_told_}});
    dropped_told_ = dropped;
  } else if (dropped > dropped_told_ && now - told_at_ >= limits_.told_every) {
    Log(LogLevel::kWarning, "trace_spans_dropped", "", {{"endpoint", endpoint_}, {"spans", dropped - dropped_told_}});
    dropped_told_ = dropped;
    told_at_ = now;
  }
  failing_ = !status.ok();
}

void SpanExporter::Drop(size_t spans) {
  if (spans == 0) return;
  dropped_.fetch_add(static_cast<int64_t>(spans));
  if (metrics_ != nullptr) metrics_->CountTraceSpans(/*exported=*/false, static_cast<int64_t>(spans));
}

}  // namespace c3po
