#ifndef C3PO_SERVER_RPC_ADD_REFERENCES_REACTOR_H_
#define C3PO_SERVER_RPC_ADD_REFERENCES_REACTOR_H_

#include <deque>
#include <memory>
#include <string>

#include "absl/synchronization/mutex.h"
#include "c3po/v1/reference.grpc.pb.h"
#include "server/pipeline/reference_importer.h"
#include "server/rpc/call_context.h"

namespace c3po {

// One ReferenceService.Add stream: samples are read as fast as the import takes them, and each committed batch is
// answered with its verdicts and the counts so far. Deletes itself when gRPC is done with it.
class AddReferencesReactor final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  AddReferencesReactor(grpc::CallbackServerContext* context, const ServiceParts& parts);

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

 private:
  absl::Status BeginImport(const std::string& collection);
  absl::Status TakeSample();
  void OnBatch(std::vector<SampleVerdict> verdicts);
  void End(const absl::Status& status);
  void Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const ServiceParts& parts_;
  CallState call_;
  grpc::ByteBuffer incoming_;
  std::string collection_;
  std::unique_ptr<ReferenceImport> import_;  // null before the first sample
  absl::Mutex mu_;
  v1::AddProgress progress_ ABSL_GUARDED_BY(mu_);
  std::deque<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mu_);  // The front is being written while writing_.
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status final_status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_ADD_REFERENCES_REACTOR_H_
