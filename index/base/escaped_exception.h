#ifndef C3PO_INDEX_BASE_ESCAPED_EXCEPTION_H_
#define C3PO_INDEX_BASE_ESCAPED_EXCEPTION_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Threads by what they run. An exception that leaves a thread's top ends the process, std::bad_alloc too: whatever a
// thread runs for a call is therefore run through CatchEscaped.
enum class ThreadKind { kWorker, kEngine, kTransport, kPeriodic, kListener, kHttp, kSignals, kMain };
inline constexpr std::array<const char*, 8> kThreadKindNames = {"worker",   "engine", "transport", "periodic",
                                                                "listener", "http",   "signals",   "main"};

// What `work` returns. An exception of `work` becomes a status, is counted, and is told to the reporter:
//   std::bad_alloc: ResourceExhausted "out of memory"
//   anything else:  Internal "an exception escaped: WHAT"
// Nothing leaves it, also where there is no memory for a message: the status then has none. Thread-safe.
absl::Status CatchEscaped(ThreadKind thread, absl::FunctionRef<absl::Status()> work) noexcept;
// Of work that has no status.
absl::Status CatchEscapedIn(ThreadKind thread, absl::FunctionRef<void()> work) noexcept;

// Of work that gives a value.
template <typename T>
absl::StatusOr<T> CatchEscapedOr(ThreadKind thread, absl::FunctionRef<absl::StatusOr<T>()> work) {
  absl::StatusOr<T> result = absl::Status(absl::StatusCode::kUnknown, "");
  const absl::Status status = CatchEscaped(thread, [&] {
    result = work();
    return result.status();
  });
  if (!status.ok()) return status;
  return result;
}

// How many were caught since the process began. Thread-safe.
int64_t EscapedExceptions(ThreadKind thread);

// Hears every one that is caught, on the thread that caught it; what it throws is dropped. null: nobody. Set it before
// threads begin.
using EscapedReporter = void (*)(ThreadKind thread, absl::string_view what);
void ReportEscapedTo(EscapedReporter reporter);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_ESCAPED_EXCEPTION_H_
