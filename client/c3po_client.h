#ifndef C3PO_CLIENT_C3PO_CLIENT_H_
#define C3PO_CLIENT_C3PO_CLIENT_H_

#include <grpcpp/channel.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "c3po/v1/generation.pb.h"
#include "c3po/v1/reference.pb.h"
#include "c3po/v1/server.pb.h"
#include "client/cancellation.h"
#include "client/retry.h"

namespace c3po {

// A channel without transport security, with room for messages far above gRPC's default of 4 MiB.
// Whether an address, as gRPC reads it, can only be this machine's: a unix socket, "localhost", or a number of loopback
// (127.0.0.0/8, [::1]), each with a port or without.
bool IsThisMachine(absl::string_view address);

// `address` is anything gRPC resolves: "host:port", "unix:/path". Connects when first used; an address of this machine
// is never looked for behind the proxy of the `http_proxy` variables.
std::shared_ptr<grpc::Channel> InsecureChannel(const std::string& address);

// Files in PEM; empty: none.
struct TlsFiles {
  std::string ca;    // Who may sign the server's certificate; empty: the system's list.
  std::string cert;  // This client's own certificate, for a server that asks for one; with `key`.
  std::string key;
};

// The same with TLS. InvalidArgument "PATH: ..." for a file that cannot be read, or one of cert and key without the
// other. What else is wrong with them shows as Unavailable when the channel is used.
absl::StatusOr<std::shared_ptr<grpc::Channel>> TlsChannel(const std::string& address, const TlsFiles& files);

struct CallOptions {
  // From the first attempt to the last, pauses included; beyond: DEADLINE_EXCEEDED.
  absl::Duration timeout = absl::InfiniteDuration();
  // Ends the call from another thread with CANCELLED. Not owned; null: none; outlives the call.
  Cancellation* cancellation = nullptr;
  // Attempts of this call, at least 1; 0: as the client's RetryPolicy says.
  int attempts_max = 0;
  // Receives what the server said about trying again when it last refused this call. Not owned; null: nobody asks.
  ServerAdvice* advice = nullptr;
};

struct ClientOptions {
  RetryPolicy retry;
  RetryClock* clock = nullptr;  // Not owned; null: RetryClock::System(). Outlives the client.
  std::string token;            // Sent with every call as `authorization: Bearer TOKEN`; empty: none.
};

struct ImportOptions {
  // Samples sent whose verdict has not come yet, at least 1: what an import keeps in memory. A server that commits
  // batches must not wait for more samples than this before it answers.
  size_t window_max = 1024;
  // AddReferencesRequest.replace: a sample takes the place of the collection's references with the same prompt.
  bool replace = false;
};

// A sample and the number that its verdict will carry: a line number, say.
struct NumberedSample {
  uint64_t sequence = 0;
  v1::ReferenceSample sample;
};

// Calls to one c3po server. Every method blocks until its call has ended and may be called from any thread, several at
// once. Callbacks run on the calling thread.
//
// Errors are the server's code with one line of text (client/error_details.h), followed by "(after N attempts)" when
// the call was tried again. A request with text that is not UTF-8 gets InvalidArgument without being sent. A call is
// tried again as RetryPolicy says, within CallOptions::timeout: when the pause would pass the deadline, the last error
// is returned at once.
class Client {
 public:
  // `channel` is shared with whoever else uses it.
  explicit Client(std::shared_ptr<grpc::Channel> channel, ClientOptions options = {});
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Hands each message of the answer's stream to `on_event`, in order; when it returns false the call is cancelled and
  // Cancelled is returned. Not tried again once a message has come.
  absl::Status Generate(const v1::GenerateRequest& request,
                        absl::FunctionRef<bool(const v1::GenerateResponse&)> on_event, const CallOptions& options = {});
  absl::StatusOr<v1::ScoreResponse> Score(const v1::ScoreRequest& request, const CallOptions& options = {});
  absl::StatusOr<v1::TokenizeResponse> Tokenize(const v1::TokenizeRequest& request, const CallOptions& options = {});
  absl::StatusOr<v1::DetokenizeResponse> Detokenize(const v1::DetokenizeRequest& request,
                                                    const CallOptions& options = {});

  // Adds the samples that `next_sample` gives until it gives nothing, with at most `import.window_max` of them waiting
  // for their verdicts. Sequences must rise strictly (InvalidArgument). `on_response` sees every response; when it
  // returns false the call is cancelled and Cancelled is returned.
  //   An error of `next_sample`, or a sample that is not UTF-8, ends the import in order: what was sent is awaited,
  //   then
  // that error is returned. Tried again only before the first response; the samples sent are then sent again, which is
  // harmless, as the server stores equal samples once. DataLoss: the server ended the stream well and left samples
  // without a verdict. After any other error, samples with a verdict are stored, and of the rest nothing is known.
  absl::Status AddReferences(absl::string_view collection,
                             absl::FunctionRef<absl::StatusOr<std::optional<NumberedSample>>()> next_sample,
                             absl::FunctionRef<bool(const v1::AddReferencesResponse&)> on_response,
                             const ImportOptions& import = {}, const CallOptions& options = {});
  // All pages as one answer; `options.timeout` is for all of them together.
  absl::StatusOr<v1::SearchReferencesResponse> SearchReferences(const v1::SearchReferencesRequest& request,
                                                                const CallOptions& options = {});
  // One page.
  absl::StatusOr<v1::ListReferencesResponse> ListReferences(const v1::ListReferencesRequest& request,
                                                            const CallOptions& options = {});
  // All pages from `request.page_token` on, one call each (`options.timeout` is for all of them together), until
  // `on_reference` returns false, which is not an error.
  absl::Status ForEachReference(v1::ListReferencesRequest request,
                                absl::FunctionRef<bool(const v1::Reference&)> on_reference,
                                const CallOptions& options = {});
  absl::StatusOr<v1::GetReferenceResponse> GetReference(const v1::GetReferenceRequest& request,
                                                        const CallOptions& options = {});
  absl::StatusOr<v1::DeleteReferencesResponse> DeleteReferences(const v1::DeleteReferencesRequest& request,
                                                                const CallOptions& options = {});
  absl::StatusOr<v1::GetStatsResponse> GetStats(const CallOptions& options = {});
  absl::StatusOr<v1::GetCollectionResponse> GetCollection(const v1::GetCollectionRequest& request,
                                                          const CallOptions& options = {});
  absl::StatusOr<v1::SetProfileResponse> SetProfile(const v1::SetProfileRequest& request,
                                                    const CallOptions& options = {});
  // Hand each message of the stream to `on_event`, as Generate does.
  absl::Status TunePrior(const v1::TunePriorRequest& request,
                         absl::FunctionRef<bool(const v1::TunePriorResponse&)> on_event,
                         const CallOptions& options = {});
  absl::Status AmortizeShifts(const v1::AmortizeShiftsRequest& request,
                              absl::FunctionRef<bool(const v1::AmortizeShiftsResponse&)> on_event,
                              const CallOptions& options = {});
  absl::Status TuneOffset(const v1::TuneOffsetRequest& request,
                          absl::FunctionRef<bool(const v1::TuneOffsetResponse&)> on_event,
                          const CallOptions& options = {});
  absl::Status BackupStore(const v1::BackupStoreRequest& request,
                           absl::FunctionRef<bool(const v1::BackupStoreResponse&)> on_event,
                           const CallOptions& options = {});
  absl::StatusOr<v1::GetServerInfoResponse> GetServerInfo(const CallOptions& options = {});

  // Asks grpc.health.v1.Health about the whole server until it answers SERVING. DeadlineExceeded after `timeout`, with
  // the last answer or error; Unimplemented at once when the server has no health service; Cancelled.
  absl::Status WaitUntilServing(absl::Duration timeout, Cancellation* cancellation = nullptr);

 private:
  struct Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_C3PO_CLIENT_H_
