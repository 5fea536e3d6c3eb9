#include "server/rpc/doors/http/ignored_fields.h"

#include <cstdint>
#include <optional>

#include "absl/strings/str_cat.h"
#include "index/base/steady_time.h"
#include "index/base/utf8.h"
#include "server/metrics/logging.h"

namespace c3po {

void LogIgnoredFields(const std::vector<std::string>& fields, absl::string_view request_id) {
  constexpr size_t kNamesMax = 8, kNameBytesMax = 64;
  static LogSampler sampler(1);
  if (fields.empty()) return;
  const std::optional<int64_t> passed_over = sampler.Admit(SteadyNow());
  if (!passed_over) return;
  std::string names;
  for (size_t i = 0; i < fields.size() && i < kNamesMax; ++i)
    absl::StrAppend(&names, i == 0 ? "" : ", ", Utf8Prefix(fields[i], kNameBytesMax));
  Log(LogLevel::kWarning, "fields_ignored", request_id,
      {{"fields", names}, {"count", static_cast<int64_t>(fields.size())}, {"requests_passed_over", *passed_over}});
}

}  // namespace c3po
