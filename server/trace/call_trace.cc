#include "server/trace/call_trace.h"

#include <algorithm>
#include <utility>

#include "index/base/utf8.h"

namespace c3po {
namespace {

// As OTLP takes it: UTF-8, and not as long as a client likes.
std::string Text(absl::string_view text) {
  if (IsValidUtf8(text)) return std::string(Utf8Prefix(text, CallTrace::kValueBytesMax));
  std::string ascii(text.substr(0, CallTrace::kValueBytesMax));
  std::replace_if(
      ascii.begin(), ascii.end(), [](char c) { return static_cast<unsigned char>(c) >= 0x80; }, '?');
  return ascii;
}

void Cut(AttributeValue& value) {
  if (auto* text = std::get_if<std::string>(&value)) *text = Text(*text);
  if (auto* texts = std::get_if<std::vector<std::string>>(&value)) {
    texts->resize(std::min(texts->size(), CallTrace::kAttributesMax));
    for (std::string& text : *texts) text = Text(text);
  }
}

}  // namespace

CallTrace::CallTrace(Span call, absl::Time begin, int64_t unix_nanoseconds, NewSpanId new_span_id, Deliver deliver)
    : trace_id_(call.trace_id),
      span_id_(call.span_id),
      flags_(call.flags & ~Span::kIsRemote),
      trace_state_(call.trace_state),
      begin_(begin),
      begin_unix_nanoseconds_(unix_nanoseconds),
      new_span_id_(std::move(new_span_id)),
      deliver_(std::move(deliver)),
      stages_end_(begin) {
  call.begin_unix_nanoseconds = call.end_unix_nanoseconds = unix_nanoseconds;
  spans_.push_back(std::move(call));
}

CallTrace::~CallTrace() { End(StagesEnd(), /*failed=*/true, "the call was lost"); }

void CallTrace::Set(absl::string_view key, AttributeValue value) {
  Cut(value);
  const MutexLock lock(mutex_);
  if (ended_) return;
  SpanAttributes& attributes = spans_.front().attributes;
  const auto same = [key](const SpanAttribute& each) { return each.key == key; };
  const auto found = std::find_if(attributes.begin(), attributes.end(), same);
  if (found != attributes.end()) {
    found->value = std::move(value);
  } else if (attributes.size() < kAttributesMax) {
    attributes.emplace_back(key, std::move(value));
  }
}

void CallTrace::AddStage(absl::string_view name, absl::Time begin, absl::Time end, SpanAttributes attributes) {
  while (attributes.size() > kAttributesMax) attributes.pop_back();
  for (SpanAttribute& attribute : attributes) Cut(attribute.value);
  const MutexLock lock(mutex_);
  if (ended_ || spans_.size() > kSpansMax) return;
  Span stage = StageOf(name, begin, end);
  stage.attributes = std::move(attributes);
  spans_.push_back(std::move(stage));
  stages_end_ = std::max(begin, end);
}

void CallTrace::ExtendStage(absl::string_view name, absl::Time begin, absl::Time end) {
  {
    const MutexLock lock(mutex_);
    for (size_t i = 1; i < spans_.size() && !ended_; ++i) {
      if (spans_[i].name != name) continue;
      spans_[i].end_unix_nanoseconds = std::max(spans_[i].begin_unix_nanoseconds, UnixNanoseconds(end));
      stages_end_ = std::max(stages_end_, end);
      return;
    }
  }
  AddStage(name, begin, end);
}

void CallTrace::AddEvent(absl::string_view name, absl::Time at) {
  const MutexLock lock(mutex_);
  if (ended_ || spans_.size() < 2 || spans_.back().events.size() >= kAttributesMax) return;
  spans_.back().events.push_back({name, UnixNanoseconds(at)});
}

bool CallTrace::HasStage(absl::string_view name) const {
  const MutexLock lock(mutex_);
  const auto same = [name](const Span& each) { return each.name == name; };
  return spans_.size() > 1 && std::any_of(spans_.begin() + 1, spans_.end(), same);
}

absl::Time CallTrace::StagesEnd() const {
  const MutexLock lock(mutex_);
  return stages_end_;
}

std::shared_ptr<CallTrace> CallTrace::BeginRequest(absl::string_view name, absl::Time begin) {
  const MutexLock lock(mutex_);
  return std::make_shared<CallTrace>(StageOf(name, begin, begin), begin, UnixNanoseconds(begin), new_span_id_,
                                     deliver_);
}

void CallTrace::End(absl::Time at, bool failed, absl::string_view failure) {
  std::vector<Span> spans;
  {
    const MutexLock lock(mutex_);
    if (std::exchange(ended_, true)) return;
    Span& call = spans_.front();
    call.end_unix_nanoseconds = std::max(call.begin_unix_nanoseconds, UnixNanoseconds(at));
    call.failed = failed;
    if (failed) call.failure = Text(failure);
    spans = std::move(spans_);
  }
  deliver_(std::move(spans));
}

Span CallTrace::StageOf(absl::string_view name, absl::Time begin, absl::Time end) const {
  Span stage;
  stage.trace_id = trace_id_;
  stage.span_id = new_span_id_();
  stage.parent_id = span_id_;
  stage.flags = flags_;
  stage.trace_state = trace_state_;
  stage.name = std::string(name);
  stage.begin_unix_nanoseconds = UnixNanoseconds(begin);
  stage.end_unix_nanoseconds = UnixNanoseconds(std::max(begin, end));
  return stage;
}

int64_t CallTrace::UnixNanoseconds(absl::Time at) const {
  return begin_unix_nanoseconds_ + absl::ToInt64Nanoseconds(at - begin_);
}

}  // namespace c3po
