// What the door says before there is a model; tests/integration has the rest.
#include "server/rpc/doors/vllm_service.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/rpc/grpc_server.h"
#include "vllm_engine.grpc.pb.h"

namespace c3po {
namespace {

using ::vllm::grpc::engine::VllmEngine;

class VllmServiceTest : public testing::Test {
 protected:
  VllmServiceTest() {
    ServerConfig config;
    config.listen = "127.0.0.1:0";
    auto server = GrpcServer::Start(config, /*metrics=*/nullptr, {MakeVllmDoor});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    engine_ = VllmEngine::NewStub(grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                                            grpc::InsecureChannelCredentials(), arguments));
  }

  grpc::Status Health(bool& healthy) {
    grpc::ClientContext context;
    ::vllm::grpc::engine::HealthCheckResponse response;
    const grpc::Status status = engine_->HealthCheck(&context, {}, &response);
    healthy = response.healthy();
    return status;
  }

  static std::string ReasonOfStatus(const grpc::Status& status) {
    google::rpc::Status details;
    google::rpc::ErrorInfo info;
    if (!details.ParseFromString(status.error_details()) || details.details().empty()) return "";
    return details.details(0).UnpackTo(&info) ? info.reason() : "";
  }

  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<VllmEngine::Stub> engine_;
};

// A gateway takes whoever answers for a worker, and asks it at once what its model is.
TEST_F(VllmServiceTest, HealthIsAnErrorWhileLoadingAndTheServersAfterwards) {
  bool healthy = true;
  const grpc::Status loading = Health(healthy);
  EXPECT_EQ(loading.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(ReasonOfStatus(loading), "LOADING");
  server_->Open(LoadedParts());
  EXPECT_TRUE(Health(healthy).ok());
  EXPECT_FALSE(healthy);
  server_->SetServing(true);
  EXPECT_TRUE(Health(healthy).ok());
  EXPECT_TRUE(healthy);
}

TEST_F(VllmServiceTest, CallsAreTurnedAwayWhileLoading) {
  grpc::ClientContext generate, info, tokenizer;
  ::vllm::grpc::engine::GenerateResponse token;
  const auto stream = engine_->Generate(&generate, {});
  EXPECT_FALSE(stream->Read(&token));
  EXPECT_EQ(ReasonOfStatus(stream->Finish()), "LOADING");
  ::vllm::grpc::engine::GetModelInfoResponse model;
  EXPECT_EQ(ReasonOfStatus(engine_->GetModelInfo(&info, {}, &model)), "LOADING");
  ::smg::grpc::common::GetTokenizerChunk chunk;
  const auto archive = engine_->GetTokenizer(&tokenizer, {});
  EXPECT_FALSE(archive->Read(&chunk));
  EXPECT_EQ(ReasonOfStatus(archive->Finish()), "LOADING");
}

}  // namespace
}  // namespace c3po
