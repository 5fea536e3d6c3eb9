#include "server/rpc/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/generation_service.h"
#include "server/rpc/reference_service.h"
#include "server/rpc/server_service.h"

namespace c3po {

struct GrpcServer::Impl {
  Impl(const ServiceParts& service_parts, std::map<std::string, uint64_t> limits)
      : parts(service_parts), generation(parts), reference(parts), server(parts, std::move(limits)) {}

  const ServiceParts parts;
  GenerationService generation;
  ReferenceService reference;
  ServerService server;
  std::unique_ptr<grpc::Server> grpc_server;
  int port = 0;
};

GrpcServer::GrpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

GrpcServer::~GrpcServer() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const std::string& address, int message_bytes_max,
                                                              const ServiceParts& parts,
                                                              std::map<std::string, uint64_t> limits) {
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto impl = std::make_unique<Impl>(parts, std::move(limits));
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &impl->port);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // A second server on the port must fail, not share it.
  builder.SetMaxReceiveMessageSize(message_bytes_max);
  builder.RegisterService(&impl->generation);
  builder.RegisterService(&impl->reference);
  builder.RegisterService(&impl->server);
  impl->grpc_server = builder.BuildAndStart();
  if (!impl->grpc_server || impl->port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", address, ": the port is in use, or the address is not this machine's"));
  }
  std::unique_ptr<GrpcServer> server(new GrpcServer(std::move(impl)));
  server->SetServing(false);
  return server;
}

int GrpcServer::port() const { return impl_->port; }

void GrpcServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = impl_->grpc_server->GetHealthCheckService();
  health->SetServingStatus(serving);
  for (const char* service : {"c3po.v1.GenerationService", "c3po.v1.ReferenceService", "c3po.v1.ServerService"}) {
    health->SetServingStatus(service, serving);
  }
}

void GrpcServer::Shutdown(absl::Duration limit) {
  impl_->grpc_server->Shutdown(absl::ToChronoTime(absl::Now() + limit));
  impl_->grpc_server->Wait();
}

}  // namespace c3po
