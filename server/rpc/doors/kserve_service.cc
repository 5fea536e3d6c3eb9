#include "server/rpc/doors/kserve_service.h"

#include <memory>
#include <string>

#include "grpc_service.grpc.pb.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/kserve_reactors.h"
#include "server/rpc/doors/kserve_request.h"
#include "server/rpc/wire.h"

namespace c3po {
namespace {

using inference::GRPCInferenceService;

using Methods =
    GRPCInferenceService::WithCallbackMethod_ServerLive<GRPCInferenceService::WithCallbackMethod_ServerReady<
        GRPCInferenceService::WithRawCallbackMethod_ModelReady<GRPCInferenceService::WithCallbackMethod_ServerMetadata<
            GRPCInferenceService::WithRawCallbackMethod_ModelMetadata<
                GRPCInferenceService::WithRawCallbackMethod_ModelInfer<
                    GRPCInferenceService::WithRawCallbackMethod_ModelStreamInfer<GRPCInferenceService::Service>>>>>>>;

class KserveService final : public Methods {
 public:
  explicit KserveService(const ServiceParts& parts) : parts_(parts) {}

  grpc::ServerUnaryReactor* ServerLive(grpc::CallbackServerContext* context, const inference::ServerLiveRequest*,
                                       inference::ServerLiveResponse* response) override {
    response->set_live(true);
    return Told(context, grpc::Status::OK);
  }

  grpc::ServerUnaryReactor* ServerReady(grpc::CallbackServerContext* context, const inference::ServerReadyRequest*,
                                        inference::ServerReadyResponse* response) override {
    response->set_ready(parts_.serving());
    return Told(context, grpc::Status::OK);
  }

  // Another model is one that is not ready.
  grpc::ServerUnaryReactor* ModelReady(grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
                                       grpc::ByteBuffer* response) override {
    inference::ModelReadyRequest request;
    inference::ModelReadyResponse answer;
    const bool parsed = ParseInto(*bytes, request).ok();
    const bool loaded = parts_.entrance->state() != Entrance::State::kLoading;
    answer.set_ready(parsed && loaded && parts_.serving() &&
                     CheckKserveModel("name", request.name(), request.version(), name()).ok());
    absl::StatusOr<grpc::ByteBuffer> raw = ToBytes(answer);
    if (!raw.ok()) return Told(context, grpc::Status(grpc::StatusCode::INTERNAL, "the answer does not serialize"));
    *response = *std::move(raw);
    return Told(context, grpc::Status::OK);
  }

  grpc::ServerUnaryReactor* ServerMetadata(grpc::CallbackServerContext* context,
                                           const inference::ServerMetadataRequest*,
                                           inference::ServerMetadataResponse* response) override {
    return AtOnce(context, Metrics::Rpc::kKserveServerMetadata, [&](CallState&) {
      response->set_name("c3pod");
      response->set_version(parts_.version);
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* ModelMetadata(grpc::CallbackServerContext* context, const grpc::ByteBuffer* bytes,
                                          grpc::ByteBuffer* response) override {
    return AtOnce(context, Metrics::Rpc::kKserveModelMetadata, [&](CallState& call) -> absl::Status {
      C3PO_RETURN_IF_ERROR(call.HoldBytes(BytesOf(*bytes)));
      C3PO_ASSIGN_OR_RETURN(const auto request, ParseRequest<inference::ModelMetadataRequest>(*bytes));
      C3PO_RETURN_IF_ERROR(CheckKserveModel("name", request.name(), request.version(), name()));
      C3PO_ASSIGN_OR_RETURN(*response, ToBytes(MetadataToKserve(request.name())));
      return absl::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* ModelInfer(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                       grpc::ByteBuffer* response) override {
    return KserveInferReactor::Start(context, *request, response, parts_);
  }

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ModelStreamInfer(
      grpc::CallbackServerContext* context) override {
    return KserveStreamReactor::Start(context, parts_);
  }

 private:
  const std::string& name() const { return parts_.pipeline_parts.model->shape().name; }

  static grpc::ServerUnaryReactor* Told(grpc::CallbackServerContext* context, const grpc::Status& status) {
    grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
    reactor->Finish(status);
    return reactor;
  }

  // What takes no time, on gRPC's own thread.
  template <typename Fill>
  grpc::ServerUnaryReactor* AtOnce(grpc::CallbackServerContext* context, Metrics::Rpc rpc, const Fill& fill) {
    CallState call(context, parts_, rpc);
    const absl::Status status = CatchEscaped(ThreadKind::kTransport, [&]() -> absl::Status {
      C3PO_RETURN_IF_ERROR(call.entry());
      return fill(call);
    });
    return Told(context, call.End(status));
  }

  const ServiceParts& parts_;
};

}  // namespace

Door MakeKserveDoor(const ServiceParts& parts) {
  return {GRPCInferenceService::service_full_name(), std::make_unique<KserveService>(parts)};
}

}  // namespace c3po
