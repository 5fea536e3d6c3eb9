#ifndef C3PO_SERVER_RPC_SERVER_SERVICE_H_
#define C3PO_SERVER_RPC_SERVER_SERVICE_H_

#include <map>
#include <string>

#include "c3po/v1/server.grpc.pb.h"
#include "server/rpc/call_context.h"

namespace c3po {

// c3po.v1.ServerService: what this server is and what a request gets that sets nothing.
class ServerService final : public v1::ServerService::CallbackService {
 public:
  ServerService(const ServiceParts& parts, std::map<std::string, uint64_t> limits);

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;

 private:
  void Fill(const CollectionAccess& collections, v1::GetServerInfoResponse* response) const;

  const ServiceParts& parts_;
  const std::map<std::string, uint64_t> limits_;
  const absl::Time started_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_SERVER_SERVICE_H_
