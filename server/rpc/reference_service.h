#ifndef C3PO_SERVER_RPC_REFERENCE_SERVICE_H_
#define C3PO_SERVER_RPC_REFERENCE_SERVICE_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "c3po/v1/reference.grpc.pb.h"
#include "server/rpc/call_context.h"

namespace c3po {

// c3po.v1.ReferenceService. Reads and changes of the store run on the worker pool, under admission; batches of imports
// and backups on pools of their own. Reactors never wait.
class ReferenceService final
    : public v1::ReferenceService::WithRawCallbackMethod_Add<v1::ReferenceService::WithRawCallbackMethod_Search<
          v1::ReferenceService::WithCallbackMethod_Get<v1::ReferenceService::WithCallbackMethod_List<
              v1::ReferenceService::WithCallbackMethod_Delete<v1::ReferenceService::WithCallbackMethod_GetStats<
                  v1::ReferenceService::WithCallbackMethod_GetCollection<
                      v1::ReferenceService::WithRawCallbackMethod_SetProfile<
                          v1::ReferenceService::WithRawCallbackMethod_TunePrior<
                              v1::ReferenceService::WithRawCallbackMethod_AmortizeShifts<
                                  v1::ReferenceService::WithRawCallbackMethod_TuneOffset<
                                      v1::ReferenceService::WithRawCallbackMethod_BackupStore<
                                          v1::ReferenceService::Service>>>>>>>>>>>> {
 public:
  explicit ReferenceService(const ServiceParts& parts) : parts_(parts) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Add(grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* Search(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                   grpc::ByteBuffer* response) override;
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context, const v1::GetReferenceRequest* request,
                                v1::GetReferenceResponse* response) override;
  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context, const v1::ListReferencesRequest* request,
                                 v1::ListReferencesResponse* response) override;
  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context, const v1::DeleteReferencesRequest* request,
                                   v1::DeleteReferencesResponse* response) override;
  grpc::ServerUnaryReactor* GetStats(grpc::CallbackServerContext* context, const v1::GetStatsRequest* request,
                                     v1::GetStatsResponse* response) override;
  grpc::ServerUnaryReactor* GetCollection(grpc::CallbackServerContext* context, const v1::GetCollectionRequest* request,
                                          v1::GetCollectionResponse* response) override;
  grpc::ServerUnaryReactor* SetProfile(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* TunePrior(grpc::CallbackServerContext* context,
                                                        const grpc::ByteBuffer* request) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* AmortizeShifts(grpc::CallbackServerContext* context,
                                                             const grpc::ByteBuffer* request) override;
  grpc::ServerWriteReactor<grpc::ByteBuffer>* TuneOffset(grpc::CallbackServerContext* context,
                                                         const grpc::ByteBuffer* request) override;

  grpc::ServerWriteReactor<grpc::ByteBuffer>* BackupStore(grpc::CallbackServerContext* context,
                                                          const grpc::ByteBuffer* request) override;

 private:
  // By name: every collection that has references or a profile, and that the caller may read.
  absl::StatusOr<std::map<std::string, v1::CollectionStats>> AllStats(const CollectionAccess& access) const;

  const ServiceParts& parts_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_REFERENCE_SERVICE_H_
