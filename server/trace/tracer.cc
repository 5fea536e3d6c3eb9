#include "server/trace/tracer.h"

#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <random>
#include <utility>

#include "index/base/steady_time.h"

namespace c3po {
namespace {

uint64_t DrawBits() {
  static std::mutex mutex;
  static std::mt19937_64 generator([] {
    std::random_device device;
    std::array<uint32_t, 16> words;
    for (uint32_t& word : words) word = device();
    std::seed_seq seed(words.begin(), words.end());
    return std::mt19937_64(seed);
  }());
  const std::lock_guard<std::mutex> lock(mutex);
  return generator();
}

// Eight bytes that are not all zero.
void Fill(uint8_t* bytes) {
  uint64_t bits = 0;
  while (bits == 0) bits = DrawBits();
  std::memcpy(bytes, &bits, sizeof bits);
}

int64_t UnixNanosecondsNow() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

bool SampledByRatio(const TraceId& id, double ratio) {
  uint64_t random = 0;
  for (size_t i = 9; i < id.size(); ++i) random = random << 8 | id[i];
  // Whole numbers: as a double, the largest of 56 bits would be 2^56.
  return random >= static_cast<uint64_t>(std::ldexp(1 - ratio, 56));
}

TraceId NewTraceId() {
  TraceId id;
  Fill(id.data());
  Fill(id.data() + 8);
  return id;
}

SpanId NewSpanId() {
  SpanId id;
  Fill(id.data());
  return id;
}

std::shared_ptr<CallTrace> Tracer::Begin(const std::optional<TraceContext>& parent, absl::string_view name,
                                         absl::Time arrival) const {
  if (parent && !parent->sampled()) return nullptr;
  Span call;
  if (parent) {
    call.trace_id = parent->trace_id;
    call.parent_id = parent->span_id;
    call.flags = parent->flags | Span::kHasIsRemote | Span::kIsRemote;
    call.trace_state = parent->state;
  } else {
    call.trace_id = NewTraceId();
    if (!SampledByRatio(call.trace_id, sample_ratio_)) return nullptr;
    call.flags = TraceContext::kSampledFlag | TraceContext::kRandomFlag | Span::kHasIsRemote;
  }
  call.span_id = NewSpanId();
  call.name = std::string(name);
  call.kind = Span::Kind::kServer;
  const int64_t unix_nanoseconds = UnixNanosecondsNow() - absl::ToInt64Nanoseconds(SteadyNow() - arrival);
  return std::make_shared<CallTrace>(std::move(call), arrival, unix_nanoseconds, NewSpanId, deliver_);
}

}  // namespace c3po
