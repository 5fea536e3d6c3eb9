#include "server/rpc/call_log.h"

#include <vector>

#include "index/base/steady_time.h"
#include "index/base/utf8.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

// Of what a client makes up, which may be as long as a message.
constexpr size_t kCollectionBytesMax = 128, kMessageBytesMax = 1024;

// Beside what is not known, nothing is written.
void AddWho(const CallRecord& call, std::vector<LogField>& fields) {
  fields.push_back({"method", Metrics::RpcName(call.rpc)});
  if (!call.caller.empty()) fields.push_back({"caller", call.caller});
  fields.push_back({"peer", call.peer});
  if (!call.collection.empty()) fields.push_back({"collection", Utf8Prefix(call.collection, kCollectionBytesMax)});
  if (!call.trace_id.empty()) fields.push_back({"trace_id", call.trace_id});
  if (!call.span_id.empty()) fields.push_back({"span_id", call.span_id});
}

}  // namespace

void CallLog::Ended(const CallRecord& call, const absl::Status& status, absl::Duration took) {
  AuditRefusal(call, status);
  const absl::string_view told = Metrics::RpcCodeName(status.code());
  const bool defect = told == "INTERNAL" || told == "DATA_LOSS";
  const bool well = status.ok() || absl::IsCancelled(status);
  const std::optional<int64_t> passed_over = defect ? 0 : (well ? ended_well_ : failed_).Admit(SteadyNow());
  const LogLevel level = defect ? LogLevel::kError : passed_over ? LogLevel::kInfo : LogLevel::kDebug;
  std::vector<LogField> fields;
  AddWho(call, fields);
  if (call.prompt_tokens >= 0) fields.push_back({"prompt_tokens", call.prompt_tokens});
  if (call.completion_tokens >= 0) fields.push_back({"completion_tokens", call.completion_tokens});
  if (!call.gate.empty()) fields.push_back({"gate", call.gate});
  fields.push_back({"status", told});
  fields.push_back({"milliseconds", absl::ToDoubleMilliseconds(took)});
  if (!status.ok()) fields.push_back({"message", Utf8Prefix(status.message(), kMessageBytesMax)});
  if (passed_over && *passed_over > 0) fields.push_back({"calls_passed_over", *passed_over});
  Log(level, "call", call.request_id, fields);
}

void CallLog::AuditRefusal(const CallRecord& call, const absl::Status& status) {
  const bool used_up = absl::IsResourceExhausted(status) && ReasonOf(status) == kRateReason;
  if (!absl::IsUnauthenticated(status) && !absl::IsPermissionDenied(status) && !used_up) return;
  const std::optional<int64_t> passed_over = refused_.Admit(SteadyNow());
  if (!passed_over) return;
  std::vector<LogField> fields = {{"action", "call"}};
  AddWho(call, fields);
  fields.push_back({"outcome", "refused"});
  fields.push_back({"status", Metrics::RpcCodeName(status.code())});
  fields.push_back({"message", Utf8Prefix(status.message(), kMessageBytesMax)});
  if (*passed_over > 0) fields.push_back({"refusals_passed_over", *passed_over});
  Log(LogLevel::kWarning, "audit", call.request_id, fields);
}

void CallLog::Audit(const CallRecord& call, absl::string_view action, int64_t generation,
                    std::initializer_list<LogField> what) {
  std::vector<LogField> fields = {{"action", action}};
  AddWho(call, fields);
  fields.push_back({"outcome", "done"});
  fields.insert(fields.end(), what.begin(), what.end());
  fields.push_back({"generation", generation});
  Log(LogLevel::kInfo, "audit", call.request_id, fields);
}

}  // namespace c3po
