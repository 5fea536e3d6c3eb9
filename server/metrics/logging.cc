#include "server/metrics/logging.h"

#include <poll.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "index/base/steady_time.h"
#include "nlohmann/json.hpp"
#include "spdlog/async_logger.h"
#include "spdlog/details/thread_pool.h"
#include "spdlog/logger.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/sinks/stdout_sinks.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<const char*, 4> kLevelNames = {"debug", "info", "warning", "error"};

std::string Text(absl::string_view text) { return std::string(text); }

Json ToJson(const LogValue& value) {
  if (const auto* text = absl::get_if<absl::string_view>(&value.value())) return Text(*text);
  if (const auto* flag = absl::get_if<bool>(&value.value())) return *flag;
  if (const auto* integer = absl::get_if<int64_t>(&value.value())) return *integer;
  if (const auto* integer = absl::get_if<uint64_t>(&value.value())) return *integer;
  return absl::get<double>(value.value());
}

std::string Line(LogLevel level, absl::string_view event, absl::string_view request_id,
                 absl::Span<const LogField> fields) {
  Json line;
  line["time"] = absl::FormatTime("%Y-%m-%d%ET%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
  line["level"] = kLevelNames[static_cast<size_t>(level)];
  line["event"] = Text(event);
  if (!request_id.empty()) line["request_id"] = Text(request_id);
  for (const LogField& field : fields) {
    if (field.key == "request_id") continue;  // Reserved even on a line that has none.
    line.emplace(Text(field.key), ToJson(field.value));
  }
  return line.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

std::shared_ptr<spdlog::logger> Prepared(std::shared_ptr<spdlog::logger> logger) {
  logger->set_pattern("%v");
  logger->set_level(spdlog::level::trace);  // Ours is the only filter.
  // The library would print its own faults to standard error, where lines go that could not be written.
  logger->set_error_handler([](const std::string&) {});
  return logger;
}

std::shared_ptr<spdlog::logger> MakeLogger(std::ostream* stream) {
  std::shared_ptr<spdlog::sinks::sink> sink;
  if (stream == nullptr) {
    sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  } else {
    sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(*stream, /*force_flush=*/true);
  }
  return Prepared(std::make_shared<spdlog::logger>("c3po", std::move(sink)));
}

// Standard error, and how many lines went there. Says once a second at most how many were lost on the way. Writes to
// the descriptor: a lock of stdio's that is held while a pipe is full would hold whoever flushes all streams at the
// exit.
class CountingSink : public spdlog::sinks::sink {
 public:
  explicit CountingSink(std::function<int64_t()> lost) : lost_(std::move(lost)) {}

  void log(const spdlog::details::log_msg& message) override {
    Write(std::string(message.payload.data(), message.payload.size()));
    ++written_;
    const absl::Time now = SteadyNow();
    const int64_t lost = lost_();
    if (lost == told_ || now - told_at_ < absl::Seconds(1)) return;
    Write(Line(LogLevel::kWarning, "log_lines_lost", "", {{"lines", lost - told_}}));
    told_ = lost;
    told_at_ = now;
  }
  void flush() override {}
  void set_pattern(const std::string&) override {}
  void set_formatter(std::unique_ptr<spdlog::formatter>) override {}

  int64_t written() const { return written_; }

 private:
  static void Write(std::string line) {
    line += '\n';
    for (absl::string_view left = line; !left.empty();) {
      const ssize_t wrote = write(STDERR_FILENO, left.data(), left.size());
      if (wrote < 0 && errno == EAGAIN) {  // Whoever shares the descriptor may have made it non-blocking.
        pollfd writable = {STDERR_FILENO, POLLOUT, 0};
        poll(&writable, 1, /*timeout=*/-1);
        continue;
      }
      if (wrote < 0 && errno != EINTR) return;
      if (wrote > 0) left.remove_prefix(static_cast<size_t>(wrote));
    }
  }

  const std::function<int64_t()> lost_;
  std::atomic<int64_t> written_{0};
  int64_t told_ = 0;  // These two are of the thread that writes.
  absl::Time told_at_ = absl::InfinitePast();
};

// The thread that writes, and its queue. Never destroyed: the thread may be writing to a pipe that nobody reads.
struct Background {
  explicit Background(size_t lines_max)
      : pool(std::make_shared<spdlog::details::thread_pool>(lines_max, /*threads_n=*/1)) {}

  int64_t lost() const { return static_cast<int64_t>(pool->overrun_counter()); }

  const std::shared_ptr<spdlog::details::thread_pool> pool;
  const std::shared_ptr<CountingSink> sink = std::make_shared<CountingSink>([this] { return lost(); });
  std::atomic<int64_t> handed_over{0};
};

struct Destination {
  absl::Mutex mu;
  std::shared_ptr<spdlog::logger> logger ABSL_GUARDED_BY(mu) = MakeLogger(nullptr);
  Background* background ABSL_GUARDED_BY(mu) = nullptr;      // Null: Log writes.
  std::vector<Background*> backgrounds ABSL_GUARDED_BY(mu);  // All that there ever were.

  // Null: there was none.
  const Background* LastBackground() {
    const absl::MutexLock lock(&mu);
    return backgrounds.empty() ? nullptr : backgrounds.back();
  }
};

// Never destroyed: threads may still log while the process exits.
Destination& GetDestination() {
  static Destination* const destination = new Destination;
  return *destination;
}

std::atomic<LogLevel> current_level{LogLevel::kInfo};

}  // namespace

void Log(LogLevel level, absl::string_view event, absl::string_view request_id, absl::Span<const LogField> fields) {
  if (level < current_level.load(std::memory_order_relaxed)) return;
  const std::string text = Line(level, event, request_id, fields);
  Destination& destination = GetDestination();
  std::shared_ptr<spdlog::logger> logger;
  {
    absl::MutexLock lock(&destination.mu);
    logger = destination.logger;
    if (destination.background != nullptr) ++destination.background->handed_over;
  }
  logger->log(spdlog::level::info, spdlog::string_view_t(text.data(), text.size()));
}

std::optional<int64_t> LogSampler::Admit(absl::Time now) {
  const absl::MutexLock lock(&mu_);
  if (const int64_t second = absl::ToUnixSeconds(now); second != second_) {
    second_ = second;
    lines_ = 0;
  }
  if (lines_ >= lines_max_) {
    ++passed_over_;
    return std::nullopt;
  }
  ++lines_;
  return std::exchange(passed_over_, 0);
}

void SetLogLevel(LogLevel level) { current_level = level; }
LogLevel GetLogLevel() { return current_level; }

absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view name) {
  for (size_t i = 0; i < kLevelNames.size(); ++i) {
    if (name == kLevelNames[i]) return static_cast<LogLevel>(i);
  }
  return absl::InvalidArgumentError(absl::StrCat("log level: \"", name, "\" is not debug, info, warning or error"));
}

void SetLogStream(std::ostream* stream) {
  std::shared_ptr<spdlog::logger> logger = MakeLogger(stream);
  Destination& destination = GetDestination();
  absl::MutexLock lock(&destination.mu);
  destination.logger = std::move(logger);
  destination.background = nullptr;
}

void WriteLogInBackground(size_t lines_max) {
  Destination& destination = GetDestination();
  auto* background = new Background(lines_max);
  std::shared_ptr<spdlog::logger> logger = Prepared(std::make_shared<spdlog::async_logger>(
      "c3po", background->sink, background->pool, spdlog::async_overflow_policy::overrun_oldest));
  absl::MutexLock lock(&destination.mu);
  destination.logger = std::move(logger);
  destination.background = background;
  destination.backgrounds.push_back(background);
}

int64_t LogLinesLost() {
  const Background* background = GetDestination().LastBackground();
  return background == nullptr ? 0 : background->lost();
}

bool FlushLog(absl::Duration limit) {
  const Background* background = GetDestination().LastBackground();
  if (background == nullptr) return true;
  const absl::Time end = SteadyNow() + limit;
  const int64_t handed_over = background->handed_over;
  while (background->sink->written() + background->lost() < handed_over) {
    if (SteadyNow() >= end) return false;
    absl::SleepFor(absl::Milliseconds(1));
  }
  return true;
}

}  // namespace c3po
