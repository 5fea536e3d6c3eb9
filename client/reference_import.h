#ifndef C3PO_CLIENT_REFERENCE_IMPORT_H_
#define C3PO_CLIENT_REFERENCE_IMPORT_H_

#include <grpcpp/client_context.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "c3po/v1/reference.grpc.pb.h"
#include "client/c3po_client.h"

namespace c3po {

// One import over ReferenceService.Add, which may need several attempts: the window of samples that have no verdict
// yet. The callbacks run on the thread of RunAttempt, which also writes; a second thread reads, so that a server
// blocked on its answers never blocks the writes for good. Internal to the client library; used by one thread.
class ReferenceImport {
 public:
  using Source = absl::FunctionRef<absl::StatusOr<std::optional<NumberedSample>>()>;
  using Sink = absl::FunctionRef<bool(const v1::AddReferencesResponse&)>;

  ReferenceImport(absl::string_view collection, Source next_sample, Sink on_response, const ImportOptions& options);

  // Holds what goes for the whole import, the collection's name above all: for checking it before anything is sent.
  v1::AddReferencesRequest first_request() const;

  // Sends the samples that have no verdict, then those of the source. Sets *received at the first response.
  grpc::Status RunAttempt(v1::ReferenceService::Stub& stub, grpc::ClientContext* context, bool* received);

  // After an attempt that ended well: the source's error, or DataLoss when samples are left without a verdict.
  absl::Status Outcome() const;

 private:
  class Reader;

  // Takes one more sample from the source into the window. False at its end or error.
  bool TakeFromSource();
  // Passes responses on and takes their samples out of the window. False when the sink wants no more.
  bool Deliver(const std::vector<v1::AddReferencesResponse>& responses);

  const std::string collection_;
  const Source next_sample_;
  const Sink on_response_;
  const size_t window_max_;
  const bool replace_;
  std::map<uint64_t, v1::ReferenceSample> unacknowledged_;  // by sequence, at most window_max_
  std::optional<uint64_t> last_sequence_;                   // taken from the source
  bool source_ended_ = false;
  absl::Status source_status_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_REFERENCE_IMPORT_H_
