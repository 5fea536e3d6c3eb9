#include "server/metrics/logging.h"

#include <array>
#include <atomic>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "spdlog/logger.h"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/sinks/stdout_sinks.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::array<const char*, 4> kLevelNames = {"debug", "info", "warning", "error"};

std::shared_ptr<spdlog::logger> MakeLogger(std::ostream* stream) {
  std::shared_ptr<spdlog::sinks::sink> sink;
  if (stream == nullptr) {
    sink = std::make_shared<spdlog::sinks::stderr_sink_mt>();
  } else {
    sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(*stream, /*force_flush=*/true);
  }
  auto logger = std::make_shared<spdlog::logger>("c3po", std::move(sink));
  logger->set_pattern("%v");
  logger->set_level(spdlog::level::trace);  // Ours is the only filter.
  return logger;
}

struct Destination {
  absl::Mutex mu;
  std::shared_ptr<spdlog::logger> logger ABSL_GUARDED_BY(mu) = MakeLogger(nullptr);
};

// Never destroyed: threads may still log while the process exits.
Destination& GetDestination() {
  static Destination* const destination = new Destination;
  return *destination;
}

std::atomic<LogLevel> current_level{LogLevel::kInfo};

std::string Text(absl::string_view text) { return std::string(text); }

Json ToJson(const LogValue& value) {
  if (const auto* text = absl::get_if<absl::string_view>(&value.value())) return Text(*text);
  if (const auto* flag = absl::get_if<bool>(&value.value())) return *flag;
  if (const auto* integer = absl::get_if<int64_t>(&value.value())) return *integer;
  if (const auto* integer = absl::get_if<uint64_t>(&value.value())) return *integer;
  return absl::get<double>(value.value());
}

}  // namespace

void Log(LogLevel level, absl::string_view event, absl::string_view request_id, absl::Span<const LogField> fields) {
  if (level < current_level.load(std::memory_order_relaxed)) return;
  Json line;
  line["time"] = absl::FormatTime("%Y-%m-%d%ET%H:%M:%E6SZ", absl::Now(), absl::UTCTimeZone());
  line["level"] = kLevelNames[static_cast<size_t>(level)];
  line["event"] = Text(event);
  if (!request_id.empty()) line["request_id"] = Text(request_id);
  for (const LogField& field : fields) {
    if (field.key == "request_id") continue;  // Reserved even on a line that has none.
    line.emplace(Text(field.key), ToJson(field.value));
  }
  const std::string text = line.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);

  Destination& destination = GetDestination();
  std::shared_ptr<spdlog::logger> logger;
  {
    absl::MutexLock lock(&destination.mu);
    logger = destination.logger;
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
}

}  // namespace c3po
