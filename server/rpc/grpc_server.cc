#include "server/rpc/grpc_server.h"

#include <google/protobuf/stubs/logging.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/admission/shared_amount.h"
#include "server/metrics/logging.h"
#include "server/pipeline/worker_pool.h"
#include "server/process/descriptor_limit.h"
#include "server/process/periodic.h"
#include "server/rpc/connection_listener.h"
#include "server/rpc/generation_service.h"
#include "server/rpc/health_service.h"
#include "server/rpc/reference_service.h"
#include "server/rpc/server_service.h"
#include "server/rpc/store_watch.h"
#include "server/rpc/tls_credentials.h"

namespace c3po {
namespace {

constexpr absl::Duration kLookAtFilesEvery = absl::Seconds(1);
constexpr int kKeepaliveSeconds = 60, kKeepaliveTimeoutSeconds = 20;

constexpr char kPlaintextWarning[] =
    "--auth-tokens: tokens cross the network unencrypted (--insecure): whoever can listen can take them; serve TLS, or "
    "let "
    "only a proxy of this machine connect";

constexpr int kHandshakeSeconds = 10;  // From the connection to HTTP/2's first frame, TLS included.
constexpr int kImportThreads = 4;      // That judge and commit batches; the engine takes turns between them anyway.
constexpr int kStoreThreads = 2;       // Of calls that need the store; a database serves few at once anyway.
constexpr int kBackupsMax = 4;         // One is copied at a time; the others are being sent.
constexpr int kReflectionStreamsMax = 16;
constexpr int kIdleSeconds = 900;  // Without a call; clients of gRPC connect again by themselves.
// For what is no connection: model files, the store, the HTTP port, libraries.
constexpr int64_t kOtherDescriptors = 256;

std::vector<Door> Make(const std::vector<MakeDoor>& doors, const ServiceParts& parts) {
  std::vector<Door> made;
  for (const MakeDoor& make : doors) made.push_back(make(parts));
  return made;
}

std::vector<std::string> NamesWith(const std::vector<Door>& doors) {
  std::vector<std::string> names = {"c3po.v1.GenerationService", "c3po.v1.ReferenceService", "c3po.v1.ServerService"};
  for (const Door& door : doors) names.push_back(door.service);
  return names;
}

int Milliseconds(int seconds) { return static_cast<int>(std::min<int64_t>(int64_t{1000} * seconds, INT_MAX)); }

ConnectionLimits LimitsOf(const ServerConfig& config) {
  ConnectionLimits limits;
  limits.connections_max = config.connections_max;
  if (const int64_t descriptors = DescriptorLimit(); descriptors > 0) {
    const int64_t ports = config.http_listen.empty() ? 1 : 2;
    const int64_t left = std::max(descriptors - kOtherDescriptors, descriptors / 2) / ports;
    limits.connections_max = static_cast<int>(std::min<int64_t>(config.connections_max, left));
  }
  limits.per_address_max = config.address_connections_max;
  return limits;
}

RateLimits RatesOf(const ServerConfig& config) {
  return {config.caller_calls_per_minute_max, config.caller_tokens_per_minute_max, config.caller_calls_max};
}

// What a connection may cost before anybody is known.
void LimitTransport(const ServerConfig& config, grpc::ServerBuilder& builder) {
  grpc::ResourceQuota quota("transport");
  quota.Resize(static_cast<size_t>(config.transport_memory_mb) << 20);
  // Reflection is gRPC's own service, the one here that takes a thread for each open stream. Two more threads listen.
  quota.SetMaxThreads(kReflectionStreamsMax + 2);
  builder.SetResourceQuota(quota);
  builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, Milliseconds(kHandshakeSeconds));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, Milliseconds(kIdleSeconds));
  // A MiB of gzip can be a GiB of message, and is inflated before its size counts. Prompts are short: none is taken.
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
}

}  // namespace

struct GrpcServer::Impl {
  Impl(std::unique_ptr<AccessControl> access_control, std::shared_ptr<TlsFiles> tls_files, const ServerConfig& config,
       Metrics* metrics, const std::vector<MakeDoor>& make_doors)
      : access(access_control.get()),
        connection_limits(LimitsOf(config)),
        tls(std::move(tls_files)),
        entrance(std::move(access_control), RatesOf(config), metrics),
        tokens_in_plaintext(config.TokensInPlaintext()),
        message_bytes(int64_t{config.call_memory_mb} << 20, "bytes for messages of calls (--call-memory-mb)",
                      [metrics](int64_t held) {
                        if (metrics != nullptr) metrics->SetMessageBytes(held);
                      }),
        import_places(config.import_streams_max, "places for imports (--import-streams-max)",
                      [metrics](int64_t held) {
                        if (metrics != nullptr) metrics->SetImportStreams(held);
                      }),
        imports(kImportThreads, config.import_streams_max),
        store_calls(kStoreThreads, config.pending_requests_max),
        generation(parts),
        reference(parts),
        server(parts, config.Limits()),
        doors(Make(make_doors, parts)),
        health(NamesWith(doors), {config.watches_max, config.address_watches_max}, metrics) {
    parts.entrance = &entrance;
    parts.call_log = &call_log;
    parts.metrics = metrics;
    parts.warnings = [this] { return Warnings(); };
    parts.serving = [this] { return health.serving(); };
    parts.unread_messages_max = static_cast<size_t>(config.unread_messages_max);
    parts.unread_max = absl::Seconds(config.unread_seconds_max);
    parts.message_bytes = &message_bytes;
    parts.import_places = &import_places;
    parts.backup_places = &backup_places;
    parts.imports = &imports;
    parts.backups = &backups;
    parts.store_calls = &store_calls;
  }

  std::vector<std::string> Warnings() const {
    std::vector<std::string> warnings;
    const auto add = [&](const absl::Status& refusal, absl::string_view flag) {
      if (!refusal.ok()) warnings.push_back(absl::StrCat(flag, refusal.message(), "; the old one stays in force"));
    };
    if (tls != nullptr) add(tls->refusal(), "");
    if (access != nullptr) add(access->refusal(), "--auth-tokens: ");
    if (tokens_in_plaintext) warnings.emplace_back(kPlaintextWarning);
    if (const StoreWatch* watch = store_watch.load()) {
      for (std::string& warning : watch->Warnings()) warnings.push_back(std::move(warning));
    }
    return warnings;
  }

  void ReadFilesAgain() {
    if (tls != nullptr) tls->LookAgain();
    if (access != nullptr) access->LookAgain();
  }

  AccessControl* const access;  // Null: no tokens. Owned by `entrance`.
  const ConnectionLimits connection_limits;
  const std::shared_ptr<TlsFiles> tls;                   // Null: no TLS.
  std::shared_ptr<grpc::ServerCredentials> credentials;  // Asked at each handshake, as long as `grpc_server` lives.
  Entrance entrance;
  const bool tokens_in_plaintext;
  CallLog call_log;
  SharedAmount message_bytes, import_places;
  SharedAmount backup_places{kBackupsMax, "places for backups"};
  WorkerPool imports, backups{kBackupsMax, kBackupsMax}, store_calls;
  ServiceParts parts;
  GenerationService generation;
  ReferenceService reference;
  ServerService server;
  const std::vector<Door> doors;
  HealthService health;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor;
  std::unique_ptr<grpc::Server> grpc_server;
  std::unique_ptr<ConnectionListener> listener;
  std::unique_ptr<Periodic> watch;                      // Of the files of both.
  std::atomic<const StoreWatch*> store_watch{nullptr};  // Null: the store is not open yet. Probes ask before it is.
};

absl::StatusOr<std::shared_ptr<TlsFiles>> LoadTls(const ServerConfig& config, Metrics* metrics) {
  if (config.tls_cert.empty()) return std::shared_ptr<TlsFiles>();
  C3PO_ASSIGN_OR_RETURN(std::shared_ptr<TlsFiles> files,
                        TlsFiles::Load({config.tls_cert, config.tls_key, config.tls_client_ca}, metrics));
  return files;
}

GrpcServer::GrpcServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

GrpcServer::~GrpcServer() { Shutdown(absl::ZeroDuration()); }

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const ServerConfig& config, Metrics* metrics,
                                                              const std::vector<MakeDoor>& doors,
                                                              const Tracer* tracer) {
  // Protobuf would write a line to the log for every request whose text is not UTF-8; its caller is told which field.
  google::protobuf::SetLogHandler(nullptr);
  C3PO_ASSIGN_OR_RETURN(const std::shared_ptr<TlsFiles> tls, LoadTls(config, metrics));
  std::unique_ptr<AccessControl> access;
  if (!config.auth_tokens.empty()) {
    C3PO_ASSIGN_OR_RETURN(access, AccessControl::Load(config.auth_tokens, metrics));
  }
  grpc::EnableDefaultHealthCheckService(false);  // HealthService takes its place.
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  auto impl = std::make_unique<Impl>(std::move(access), tls, config, metrics, doors);
  impl->parts.tracer = tracer;
  grpc::ServerBuilder builder;
  impl->credentials = tls == nullptr ? grpc::InsecureServerCredentials() : MakeTlsCredentials(tls);
  C3PO_ASSIGN_OR_RETURN(impl->listener, ConnectionListener::Listen(config.listen, impl->connection_limits, metrics));
  impl->acceptor = builder.experimental().AddExternalConnectionAcceptor(
      grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD, impl->credentials);
  builder.SetMaxReceiveMessageSize(config.message_bytes_max);
  LimitTransport(config, builder);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, config.connection_streams_max);
  // A client whose machine has vanished says nothing; its calls must not hold the device for hours.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(kKeepaliveSeconds));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(kKeepaliveTimeoutSeconds));
  if (config.connection_age_seconds_max > 0) {  // gRPC itself adds the jitter.
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, Milliseconds(config.connection_age_seconds_max));
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
                               Milliseconds(config.connection_age_grace_seconds_max));
  }
  builder.RegisterService(&impl->generation);
  builder.RegisterService(&impl->reference);
  builder.RegisterService(&impl->server);
  for (const Door& door : impl->doors) builder.RegisterService(door.handler.get());
  builder.RegisterService(&impl->health);
  impl->grpc_server = builder.BuildAndStart();
  if (!impl->grpc_server) return absl::InternalError("gRPC: the server cannot be started");
  impl->listener->Open([acceptor = impl->acceptor.get()](int listening, int connection) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters parameters;
    parameters.listener_fd = listening;
    parameters.fd = connection;
    acceptor->HandleNewConnection(&parameters);
  });
  impl->watch = std::make_unique<Periodic>(kLookAtFilesEvery, [watched = impl.get()] { watched->ReadFilesAgain(); });
  if (config.TokensInPlaintext()) Log(LogLevel::kWarning, "tokens_in_plaintext", "", {{"reason", kPlaintextWarning}});
  return std::unique_ptr<GrpcServer>(new GrpcServer(std::move(impl)));
}

int GrpcServer::port() const { return impl_->listener->port(); }

bool GrpcServer::accepting() const { return impl_->listener->accepting(); }

std::vector<std::string> GrpcServer::Warnings() const { return impl_->Warnings(); }

void GrpcServer::ReadFilesAgain() { impl_->ReadFilesAgain(); }

void GrpcServer::Open(const LoadedParts& parts) {
  static_cast<LoadedParts&>(impl_->parts) = parts;
  impl_->store_watch = parts.store_watch;
  impl_->entrance.Set(Entrance::State::kOpen);
}

const ServiceParts& GrpcServer::parts() const { return impl_->parts; }

std::shared_ptr<const TlsFiles> GrpcServer::tls() const { return impl_->tls; }

ConnectionLimits GrpcServer::connection_limits() const { return impl_->connection_limits; }

void GrpcServer::CloseEntrance() { impl_->entrance.Set(Entrance::State::kDraining); }

void GrpcServer::SetServing(bool serving) { impl_->health.SetServing(serving); }

void GrpcServer::Shutdown(absl::Duration limit) {
  impl_->listener->Close();
  impl_->health.EndWatches();
  impl_->grpc_server->Shutdown(
      gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(absl::ToInt64Milliseconds(limit), GPR_TIMESPAN)));
  impl_->grpc_server->Wait();
}

}  // namespace c3po
