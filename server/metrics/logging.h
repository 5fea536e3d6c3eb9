#ifndef C3PO_SERVER_METRICS_LOGGING_H_
#define C3PO_SERVER_METRICS_LOGGING_H_

#include <cstdint>
#include <initializer_list>
#include <iosfwd>
#include <optional>
#include <string>
#include <type_traits>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "absl/types/variant.h"

namespace c3po {

// Structured logs: one JSON object a line, on standard error unless SetLogStream says otherwise:
//   {"time":"2026-01-31T12:00:00.123456Z","level":"info","event":"request_finished","request_id":"r-1","tokens":17}
// `time` is UTC. `request_id` is left out where it is empty. Fields follow in the order given. Bytes that are not UTF-8
// become U+FFFD, numbers that are not finite become null; so every line is valid JSON whatever a client sent. All
// functions are thread-safe; lines never interleave. What users write (prompts, answers) does not belong in a log.
enum class LogLevel { kDebug, kInfo, kWarning, kError };

// A number, truth value or text. Texts are not copied: they must live until Log returns.
class LogValue {
 public:
  LogValue(bool value) : value_(value) {}                                   // NOLINT(runtime/explicit)
  LogValue(double value) : value_(value) {}                                 // NOLINT(runtime/explicit)
  LogValue(const char* value) : value_(absl::string_view(value)) {}         // NOLINT(runtime/explicit)
  LogValue(absl::string_view value) : value_(value) {}                      // NOLINT(runtime/explicit)
  LogValue(const std::string& value) : value_(absl::string_view(value)) {}  // NOLINT(runtime/explicit)
  template <typename Integer, std::enable_if_t<std::is_integral_v<Integer>, int> = 0>
  LogValue(Integer value) {  // NOLINT(runtime/explicit)
    if constexpr (std::is_signed_v<Integer>) {
      value_ = static_cast<int64_t>(value);
    } else {
      value_ = static_cast<uint64_t>(value);
    }
  }

  using Value = absl::variant<bool, int64_t, uint64_t, double, absl::string_view>;
  const Value& value() const { return value_; }

 private:
  Value value_;
};

// `key` is snake_case with its unit ("decode_seconds"), and none of time, level, event, request_id; a key given twice,
// or one of those, keeps the first value.
struct LogField {
  absl::string_view key;
  LogValue value;
};

// Writes a line when `level` is at least the level set. `event` is a snake_case name that does not vary with its data.
void Log(LogLevel level, absl::string_view event, absl::string_view request_id, absl::Span<const LogField> fields);
inline void Log(LogLevel level, absl::string_view event, absl::string_view request_id,
                std::initializer_list<LogField> fields = {}) {
  Log(level, event, request_id, absl::MakeConstSpan(fields.begin(), fields.size()));
}

// Which lines of an event that comes in crowds are written: the first so many of each second. Thread-safe.
class LogSampler {
 public:
  explicit LogSampler(int lines_per_second_max) : lines_max_(lines_per_second_max) {}
  // How many lines were passed over since the last one that was written; nothing: pass this one over too.
  std::optional<int64_t> Admit(absl::Time now);

 private:
  const int lines_max_;
  absl::Mutex mu_;
  int64_t second_ ABSL_GUARDED_BY(mu_) = -1;
  int lines_ ABSL_GUARDED_BY(mu_) = 0;  // in that second
  int64_t passed_over_ ABSL_GUARDED_BY(mu_) = 0;
};

// Lines below `level` are dropped before anything is formatted. At start: kInfo.
void SetLogLevel(LogLevel level);
LogLevel GetLogLevel();

// "debug", "info", "warning" or "error". InvalidArgument for anything else, naming it.
absl::StatusOr<LogLevel> ParseLogLevel(absl::string_view name);

// Sends lines to `stream`, flushed one by one; nullptr is standard error again. Not owned: a stream must outlive its
// use, that is until the next call has returned and no Log that began before it is running. Lines are written by Log
// itself from then on.
void SetLogStream(std::ostream* stream);

// From now on a thread writes the lines to standard error, and Log only hands them over: a reader that does not keep
// up, such as a full pipe, costs lines, never the time of a call. At most `lines_max` lines wait; a further one takes
// the place of the oldest.
void WriteLogInBackground(size_t lines_max);
// Lines that gave way to later ones, since WriteLogInBackground was last called.
int64_t LogLinesLost();
// Waits until what was logged before is written, for at most `limit`; false: it is not. True at once where Log writes
// the lines itself.
bool FlushLog(absl::Duration limit);

}  // namespace c3po

#endif  // C3PO_SERVER_METRICS_LOGGING_H_
