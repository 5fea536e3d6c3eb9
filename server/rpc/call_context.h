#ifndef C3PO_SERVER_RPC_CALL_CONTEXT_H_
#define C3PO_SERVER_RPC_CALL_CONTEXT_H_

#include <grpcpp/server_context.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "index/base/mutex.h"
#include "server/admission/shared_amount.h"
#include "server/metrics/metrics.h"
#include "server/pipeline/collection_learning.h"
#include "server/pipeline/generation_pipeline.h"
#include "server/pipeline/optimization_settings.h"
#include "server/rpc/call_log.h"
#include "server/rpc/entrance.h"

namespace c3po {

class Profiles;
class StoreFollower;
class StoreWatch;
class Tracer;

// What the services work with once the server is open; nothing is owned, all outlives the server.
struct LoadedParts {
  PipelineParts pipeline_parts;
  GenerationPipeline* pipeline = nullptr;
  CollectionLearning* learning = nullptr;
  Profiles* profiles = nullptr;  // what requests get that set nothing
  const ReferenceStore* store = nullptr;
  const StoreWatch* store_watch = nullptr;  // null: nobody looks at the store
  StoreFeed* feed = nullptr;                // of its changes
  StoreFollower* follower = nullptr;        // of the feed
  SamplingParams default_sampling;
  int64_t kv_cache_tokens = 0;  // that there are
  std::string model_folder;     // of config.json and the tokenizer's files
  std::string version;
};

// What every service holds from the start. Only calls that the entrance lets in may look at the rest.
struct ServiceParts : LoadedParts {
  Entrance* entrance = nullptr;
  CallLog* call_log = nullptr;
  Metrics* metrics = nullptr;      // of every call, those that the entrance turns away too; may be null
  const Tracer* tracer = nullptr;  // of the same; null: nothing is traced
  std::function<std::vector<std::string>()> warnings;  // what needs an operator
  std::function<bool()> serving;                       // what health says
  size_t unread_messages_max = 0;                      // of a stream, before its client is cut off
  absl::Duration unread_max = absl::Minutes(1);        // that a client may leave a chunk of a backup unread
  SharedAmount* message_bytes = nullptr;               // of requests and answers that calls hold; null: as many as come
  SharedAmount* import_places = nullptr;               // Add streams
  SharedAmount* backup_places = nullptr;               // BackupStore calls
  WorkerPool* imports = nullptr;                       // judges and commits their batches
  WorkerPool* store_calls = nullptr;  // runs calls that need the store, so that the other workers never wait for it
  WorkerPool* backups = nullptr;
};

// What gRPC knows of a call.
CallOrigin OriginOf(const grpc::CallbackServerContext& context);

// One call's place on the wire: who calls, its deadline, its cancel flag, and the accounting of how it ended. What is
// to be in the log of it is noted on the way, by one thread at a time and before End.
class CallState {
 public:
  CallState(grpc::CallbackServerContext* context, const ServiceParts& parts, Metrics::Rpc rpc);
  // Of another transport, which ends it by Ended.
  CallState(CallOrigin origin, const ServiceParts& parts, Metrics::Rpc rpc);
  ~CallState();
  CallState(const CallState&) = delete;
  CallState& operator=(const CallState&) = delete;

  // Other than OK: the call is not let in, and must end with this before its request is read.
  absl::Status entry() const { return admission_.status(); }
  // Of the token by which the call was let in; null where there are none.
  const std::shared_ptr<Grant>& grant() const { return admission_->caller.grant; }
  // Which collections the caller may use. Of a call that was let in.
  const CollectionAccess& collections() const { return admission_->caller.collections; }
  // Whether the caller may do what is for administrators; everyone may where callers have no roles.
  bool administers() const { return administers_; }

  // What the call's cost is charged to. Of a call that was let in.
  std::shared_ptr<RateLimiter::Call> rates() const { return admission_->call; }

  // Who calls, as AccessControl or the transport names it; empty where that is not known.
  const std::string& caller() const { return record_.caller; }

  // Counts `bytes` of the call's request, or of an answer that its client has not taken, against what all calls may
  // hold. They are given back by ReleaseBytes, or when this goes. The first kFreeBytes of a call are not counted, so
  // that small calls are served whatever large ones hold. ResourceExhausted: ServiceParts::message_bytes. Thread-safe.
  static constexpr int64_t kFreeBytes = 64 << 10;
  absl::Status HoldBytes(size_t bytes);
  void ReleaseBytes(size_t bytes);
  // Cancelled: the client left, or was cut off. Thread-safe.
  absl::Status CheckCancelled() const;

  // A context for the pipeline. `request_id` empty: one is made.
  CallContext Context(const std::string& request_id);
  const std::string& request_id() const { return record_.request_id; }
  // For the log.
  void NoteCollection(absl::string_view collection) { record_.collection = std::string(collection); }
  void NoteReport(const OptimizationReport& report);
  // And what of the call's cost was used, in tokens through the model; the rest is given back.
  void NoteUsage(const Usage& usage, int64_t cost);
  // A line of the log for a change that the call made (CallLog). Call it once the change is committed.
  void Audit(absl::string_view action, std::initializer_list<LogField> what) const;
  const std::shared_ptr<const std::atomic<bool>> cancelled() const { return cancelled_; }
  // The call's span, from its arrival to its end; null: the call is not traced.
  const std::shared_ptr<CallTrace>& trace() const { return trace_; }
  void Cancel();
  // The token by which the call was let in allows no longer what it did.
  bool revoked() const { return revoked_.load(); }
  // The call's work has ended, and what it held is free; answers may still be on their way to the client.
  void Released();
  // Counts and logs the end; call once, last. Returns what the client is told: RevokedError where the call was
  // cancelled as its token was revoked, else `status`.
  absl::Status Ended(const absl::Status& status) noexcept;
  // The same for gRPC's wire. Where there is no memory for that, the status has its code alone.
  grpc::Status End(const absl::Status& status) noexcept;

 private:
  void BeginTrace(const Tracer& tracer);

  grpc::CallbackServerContext* context_ = nullptr;  // Set once; null: not gRPC's.
  const CallOrigin origin_;
  CallRecord record_;
  const absl::StatusOr<Entrance::Admission> admission_;
  Metrics* const metrics_;  // may be null
  CallLog* const log_;
  const ReferenceStore* const store_;
  const bool administers_, may_use_oracle_;
  const absl::Time arrival_;
  std::shared_ptr<CallTrace> trace_;  // null: not traced
  const std::shared_ptr<std::atomic<bool>> cancelled_;
  std::atomic<int64_t> cancelled_at_nanoseconds_{0};
  std::atomic<bool> released_{false}, revoked_{false};
  SharedAmount* const message_bytes_;  // may be null
  Mutex bytes_mutex_;
  int64_t bytes_ ABSL_GUARDED_BY(bytes_mutex_) = 0;          // held
  int64_t bytes_counted_ ABSL_GUARDED_BY(bytes_mutex_) = 0;  // of them, taken of message_bytes_
  // Cancels the call when its token is revoked. Goes first.
  std::unique_ptr<Grant::Hold> hold_;
};

// Unauthenticated: the token allows no longer what it did when the call was let in.
absl::Status RevokedError();

// A fresh seed, and a fresh request id of 16 hexadecimal digits.
uint64_t DrawSeed();

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_CALL_CONTEXT_H_
