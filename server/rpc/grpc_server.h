#ifndef C3PO_SERVER_RPC_GRPC_SERVER_H_
#define C3PO_SERVER_RPC_GRPC_SERVER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/config/server_config.h"
#include "server/rpc/call_context.h"
#include "server/rpc/connection_listener.h"
#include "server/rpc/door.h"
#include "server/rpc/tls_files.h"

namespace c3po {

// The listening gRPC server: the three services, the doors, grpc.health.v1 (Check and Watch) and reflection. It listens
// before the model is loaded: until Open, health is NOT_SERVING and every call ends with Unavailable, reason LOADING.
class GrpcServer {
 public:
  // Listens as `config` says, with its transport security and its tokens. `metrics` count every call from the first on,
  // and outlive the server; null: nothing is counted. `tracer` traces them, likewise. InvalidArgument: files of the
  // configuration are wrong. Unavailable: the port is in use or the address is not this machine's, naming it.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const ServerConfig& config, Metrics* metrics,
                                                           const std::vector<MakeDoor>& doors = {},
                                                           const Tracer* tracer = nullptr);
  ~GrpcServer();

  // Of an address with a port; 1 for a socket's path, which has none.
  int port() const;
  // Whether connections get through; see ConnectionListener. Thread-safe.
  bool accepting() const;
  // Files of TLS and tokens that were replaced by wrong ones, and what is wrong with the store, one line each; empty:
  // nothing is.
  // Thread-safe.
  std::vector<std::string> Warnings() const;
  // Reads the files of TLS and tokens again now. They are looked at every second anyway. Thread-safe.
  void ReadFilesAgain();
  // Lets calls in. What `parts` points to outlives the server. Once.
  void Open(const LoadedParts& parts);
  // What calls of other ports pass and work with, as the services here do. They live as long as the server.
  const ServiceParts& parts() const;
  std::shared_ptr<const TlsFiles> tls() const;  // Null: no TLS.
  // Of each port, so that the limit of file descriptors holds for all of them.
  ConnectionLimits connection_limits() const;
  // New calls end with Unavailable from now on; those that were let in go on.
  void CloseEntrance();
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
