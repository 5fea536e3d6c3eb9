#include "server/trace/span_queue.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace c3po {

bool SpanQueue::Add(std::vector<Span> spans, absl::Time now) {
  if (held_ + spans.size() > limits_.queued_spans_max) return false;
  held_ += spans.size();
  waiting_ += spans.size();
  calls_.push_back({now, std::move(spans)});
  return true;
}

absl::Time SpanQueue::Due() const {
  if (!failed_.empty()) return retry_at_;
  if (waiting_ >= limits_.batch_spans) return absl::InfinitePast();
  return calls_.empty() ? absl::InfiniteFuture() : calls_.front().added + limits_.batch_wait_max;
}

std::vector<Span> SpanQueue::Take() {
  std::vector<Span> batch = std::exchange(failed_, {});
  while (batch.size() < limits_.batch_spans && !calls_.empty()) {
    std::vector<Span>& oldest = calls_.front().spans;
    waiting_ -= oldest.size();
    batch.insert(batch.end(), std::make_move_iterator(oldest.begin()), std::make_move_iterator(oldest.end()));
    calls_.pop_front();
  }
  return batch;
}

void SpanQueue::Finished(size_t spans) {
  held_ -= std::min(held_, spans);
  pause_ = absl::ZeroDuration();
}

void SpanQueue::Retry(std::vector<Span> batch, absl::Time now, absl::Duration asked, double jitter) {
  failed_ = std::move(batch);
  pause_ = pause_ == absl::ZeroDuration() ? limits_.first_pause : std::min(2 * pause_, limits_.pause_max);
  retry_at_ = now + (asked > absl::ZeroDuration() ? std::min(asked, limits_.pause_max) : pause_ * jitter);
}

}  // namespace c3po
