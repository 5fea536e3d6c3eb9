#include "server/rpc/call_span.h"

#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "index/base/escaped_exception.h"
#include "index/base/steady_time.h"
#include "server/rpc/grpc_status.h"

namespace c3po {
namespace {

// Of "ipv4:10.0.0.7:51002" and "ipv6:%5B::1%5D:51002"; of a socket's path there is nothing to tell.
void SetPeer(absl::string_view peer, CallTrace& trace) {
  const size_t scheme = peer.find(':'), port = peer.rfind(':');
  int number = 0;
  if (!absl::StartsWith(peer, "ipv") || port <= scheme || !absl::SimpleAtoi(peer.substr(port + 1), &number)) return;
  std::string address = std::string(peer.substr(scheme + 1, port - scheme - 1));
  for (const char* bracket : {"%5B", "%5D", "[", "]"}) {
    if (const size_t at = address.find(bracket); at != std::string::npos)
      address.erase(at, std::string(bracket).size());
  }
  trace.Set("network.peer.address", std::move(address));
  trace.Set("network.peer.port", int64_t{number});
}

// "POST", "/v1/completions"; nothing of a gRPC method.
struct HttpRoute {
  Metrics::Rpc rpc;
  const char* method;
  const char* path;
};
const HttpRoute* RouteOf(Metrics::Rpc rpc) {
  static constexpr HttpRoute kRoutes[] = {{Metrics::Rpc::kOpenAiChatCompletions, "POST", "/v1/chat/completions"},
                                          {Metrics::Rpc::kOpenAiCompletions, "POST", "/v1/completions"},
                                          {Metrics::Rpc::kOpenAiEmbeddings, "POST", "/v1/embeddings"},
                                          {Metrics::Rpc::kOpenAiModels, "GET", "/v1/models"}};
  for (const HttpRoute& route : kRoutes) {
    if (route.rpc == rpc) return &route;
  }
  return nullptr;
}

// The semantic conventions' list for servers: what is the caller's own fault is no error of the server's span.
bool IsServersFault(absl::string_view code) {
  for (const absl::string_view fault : {"DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}) {
    if (code == fault) return true;
  }
  return false;
}

}  // namespace

std::string FullServiceName(Metrics::Rpc rpc) {
  const absl::string_view name = Metrics::RpcName(rpc);
  const absl::string_view service = name.substr(0, name.find('/'));
  if (service == "VllmEngine") return "vllm.grpc.engine.VllmEngine";
  if (service == "GRPCInferenceService") return "inference.GRPCInferenceService";
  if (RouteOf(rpc) != nullptr) return std::string(service);
  return absl::StrCat("c3po.v1.", service);
}

std::shared_ptr<CallTrace> BeginCallSpan(const Tracer& tracer, const std::optional<TraceContext>& parent,
                                         Metrics::Rpc rpc, const std::string& peer, absl::Time arrival) {
  std::shared_ptr<CallTrace> trace;
  if (const HttpRoute* route = RouteOf(rpc)) {
    trace = tracer.Begin(parent, absl::StrCat(route->method, " ", route->path), arrival);
    if (trace == nullptr) return nullptr;
    trace->Set("http.request.method", route->method);
    trace->Set("http.route", route->path);
  } else {
    const std::string service = FullServiceName(rpc);
    const absl::string_view name = Metrics::RpcName(rpc);
    const std::string method = std::string(name.substr(name.find('/') + 1));
    trace = tracer.Begin(parent, absl::StrCat(service, "/", method), arrival);
    if (trace == nullptr) return nullptr;
    trace->Set("rpc.system", "grpc");
    trace->Set("rpc.service", service);
    trace->Set("rpc.method", method);
  }
  SetPeer(peer, *trace);
  return trace;
}

void EndCallSpan(CallTrace* trace, Metrics::Rpc rpc, const absl::Status& status) noexcept {
  if (trace == nullptr) return;
  (void)CatchEscapedIn(ThreadKind::kTransport, [&] {
    const absl::string_view name = Metrics::RpcCodeName(status.code());
    if (RouteOf(rpc) == nullptr) trace->Set("rpc.grpc.status_code", int64_t{ToGrpcCode(status.code())});
    if (!status.ok()) trace->Set("error.type", std::string(name));
    trace->End(SteadyNow(), IsServersFault(name), status.message());
  });
}

}  // namespace c3po
