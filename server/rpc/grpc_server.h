#ifndef C3PO_SERVER_RPC_GRPC_SERVER_H_
#define C3PO_SERVER_RPC_GRPC_SERVER_H_

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/rpc/call_context.h"

namespace c3po {

// The listening gRPC server: the three services, grpc.health.v1 (Check and Watch) and reflection.
class GrpcServer {
 public:
  // `address` as gRPC writes it, "127.0.0.1:50051"; port 0 chooses one. What `parts` points to outlives the server.
  // Unavailable: the port is in use or the address is not this machine's, naming it.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const std::string& address, int message_bytes_max,
                                                           const ServiceParts& parts,
                                                           std::map<std::string, uint64_t> limits);
  ~GrpcServer();

  int port() const;
  // For the whole server ("") and each service.
  void SetServing(bool serving);
  // Refuses new calls; running ones may go on until `limit`, then they are cancelled.
  void Shutdown(absl::Duration limit);

 private:
  struct Impl;
  explicit GrpcServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_GRPC_SERVER_H_
