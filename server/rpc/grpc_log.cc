#include "server/rpc/grpc_log.h"

#include <grpc/support/log.h>

#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/base/steady_time.h"
#include "server/metrics/logging.h"

namespace c3po {
namespace {

constexpr int kLinesPerSecondMax = 10;
constexpr size_t kMessageBytesMax = 1024;

void Write(gpr_log_func_args* line) {
  static LogSampler* const sampler = new LogSampler(kLinesPerSecondMax);
  const LogLevel level = line->severity == GPR_LOG_SEVERITY_DEBUG  ? LogLevel::kDebug
                         : line->severity == GPR_LOG_SEVERITY_INFO ? LogLevel::kInfo
                                                                   : LogLevel::kWarning;
  if (level < GetLogLevel()) return;
  const std::optional<int64_t> passed_over = sampler->Admit(SteadyNow());
  if (!passed_over) return;
  const absl::string_view path = line->file;
  const size_t slash = path.rfind('/');
  const std::string source = absl::StrCat(slash == path.npos ? path : path.substr(slash + 1), ":", line->line);
  std::vector<LogField> fields = {{"source", source},
                                  {"message", absl::string_view(line->message).substr(0, kMessageBytesMax)}};
  if (*passed_over > 0) fields.push_back({"lines_passed_over", *passed_over});
  Log(level, "grpc", "", fields);
}

}  // namespace

void LogForGrpc() {
  gpr_log_verbosity_init();  // As GRPC_VERBOSITY says; without it nothing is passed on before gRPC is used.
  gpr_set_log_function(Write);
}

}  // namespace c3po
