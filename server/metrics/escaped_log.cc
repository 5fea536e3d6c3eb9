#include "server/metrics/escaped_log.h"

#include <cstddef>
#include <optional>

#include "index/base/escaped_exception.h"
#include "index/base/steady_time.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

constexpr int kLinesPerSecondMax = 10;  // They may come in crowds.

void LogOne(ThreadKind thread, absl::string_view what) {
  static LogSampler* const sampler = new LogSampler(kLinesPerSecondMax);
  const std::optional<int64_t> passed_over = sampler->Admit(SteadyNow());
  if (!passed_over) return;
  Log(LogLevel::kError, "exception_escaped", "",
      {{"thread", kThreadKindNames[static_cast<size_t>(thread)]}, {"what", what}, {"passed_over", *passed_over}});
}

}  // namespace

void LogEscapedExceptions() { ReportEscapedTo(LogOne); }

}  // namespace c3po
