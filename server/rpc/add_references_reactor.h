#ifndef C3PO_SERVER_RPC_ADD_REFERENCES_REACTOR_H_
#define C3PO_SERVER_RPC_ADD_REFERENCES_REACTOR_H_

#include <memory>
#include <string>

#include "c3po/v1/reference.grpc.pb.h"
#include "server/pipeline/reference_importer.h"
#include "server/rpc/queued_stream.h"

namespace c3po {

// One ReferenceService.Add stream: samples are read as fast as the import takes them, and each committed batch is
// answered with its verdicts and the counts so far. Takes no thread while it waits. ResourceExhausted: the places for
// imports are taken, or the caller's share of them is. Holds itself until OnDone. The import's events hold it as well:
// gRPC may be done with the call while the event that ended it still runs.
class AddReferencesReactor final : public QueuedStream<grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>>,
                                   public std::enable_shared_from_this<AddReferencesReactor> {
 public:
  static AddReferencesReactor* Start(grpc::CallbackServerContext* context, const ServiceParts& parts);
  AddReferencesReactor(grpc::CallbackServerContext* context, const ServiceParts& parts);

  void OnReadDone(bool ok) override;
  void OnDone() override;

 private:
  absl::Status Begin();
  absl::Status BeginImport(const v1::AddReferencesRequest& first) ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_);
  absl::Status TakeSample() ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_);
  void TakeRead(bool ok) ABSL_EXCLUSIVE_LOCKS_REQUIRED(reading_);
  void OnRevoked();
  void OnBatch(std::vector<SampleVerdict> verdicts);
  void OnImportEnd(const absl::Status& status);

  const ServiceParts& parts_;
  grpc::ByteBuffer incoming_;
  Mutex reading_;  // A read and the token's end come from different threads.
  bool revoked_ ABSL_GUARDED_BY(reading_) = false;
  std::string collection_;
  std::unique_ptr<SharedAmount::Held> place_;
  // Null before the first sample, and after OnDone.
  std::shared_ptr<ReferenceImport> import_ ABSL_GUARDED_BY(reading_);
  v1::AddProgress progress_;  // of the import's job, as `replaced_`
  uint64_t replaced_ = 0;     // references that went for samples of this stream
  std::shared_ptr<AddReferencesReactor> self_;
  std::unique_ptr<Grant::Hold> hold_;  // Goes first.
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_ADD_REFERENCES_REACTOR_H_
