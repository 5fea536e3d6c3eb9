#ifndef C3PO_SERVER_RPC_CALL_LOG_H_
#define C3PO_SERVER_RPC_CALL_LOG_H_

#include <cstdint>
#include <initializer_list>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/metrics/logging.h"
#include "server/metrics/metrics.h"

namespace c3po {

// Who called what, and what is known of the call by its end.
struct CallRecord {
  Metrics::Rpc rpc = Metrics::Rpc::kGenerate;
  std::string request_id;
  std::string caller;                              // AccessControl's or the transport's name; empty: not authenticated
  std::string peer;                                // the address, as gRPC writes it: "ipv4:10.0.0.7:51002"
  std::string collection;                          // empty: the call names none
  std::string trace_id, span_id;                   // hexadecimal; empty: no trace is known, the call is not recorded
  std::string gate;                                // decision on the pathway; empty: there was none to make
  int prompt_tokens = -1, completion_tokens = -1;  // -1: not known
};

// What calls leave in the log:
//   event "call", one line per call at its end: method, caller, peer, collection, trace_id, span_id, prompt_tokens,
//     completion_tokens, gate, status, milliseconds, message. Of calls that ended well, and of calls that failed, so
//     many a second are told at level info, beside how many were passed over since (`calls_passed_over`); level debug
//     tells all. What is a defect of the server (INTERNAL, DATA_LOSS) is always told, at level error.
//   event "audit", with action, method, caller, peer, collection, trace_id, span_id and outcome:
//     outcome "done": one line for every change that a call made to what the server keeps, never passed over, with what
//     was changed and the store's generation by which it is there. Action: "add", "delete", ... outcome "refused": one
//     line for every call that its caller might not make (UNAUTHENTICATED, PERMISSION_DENIED), or for which a limit of
//     its caller's was used up (RESOURCE_EXHAUSTED, reason RATE). Action "call", with status and message. So many a
//     second are told, beside how many were passed over since (`refusals_passed_over`).
// Prompts and answers are in neither. A collection's name is cut at 128 bytes, a message at 1024. Thread-safe.
class CallLog {
 public:
  static constexpr int kLinesPerSecondMax = 50;  // of each kind

  explicit CallLog(int lines_per_second_max = kLinesPerSecondMax)
      : ended_well_(lines_per_second_max), failed_(lines_per_second_max), refused_(lines_per_second_max) {}

  void Ended(const CallRecord& call, const absl::Status& status, absl::Duration took);
  static void Audit(const CallRecord& call, absl::string_view action, int64_t generation,
                    std::initializer_list<LogField> what);

 private:
  void AuditRefusal(const CallRecord& call, const absl::Status& status);

  LogSampler ended_well_, failed_, refused_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_CALL_LOG_H_
