#include "server/rpc/call_span.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "index/base/steady_time.h"

namespace c3po {
namespace {

class CallSpanTest : public testing::Test {
 protected:
  const Span& Ended(const absl::Status& status, const std::string& peer = "ipv4:10.0.0.7:51002",
                    Metrics::Rpc rpc = Metrics::Rpc::kVllmGenerate) {
    const auto trace = BeginCallSpan(tracer_, std::nullopt, rpc, peer, SteadyNow());
    EndCallSpan(trace.get(), rpc, status);
    return spans_.at(0);
  }
  static std::string Text(const Span& span, absl::string_view key) {
    for (const SpanAttribute& attribute : span.attributes) {
      if (attribute.key != key) continue;
      if (const auto* number = std::get_if<int64_t>(&attribute.value)) return std::to_string(*number);
      return std::get<std::string>(attribute.value);
    }
    return "none";
  }

  std::vector<Span> spans_;
  const Tracer tracer_{1, [this](std::vector<Span> spans) { spans_ = std::move(spans); }};
};

TEST_F(CallSpanTest, IsNamedAfterTheMethodAndKnowsItsPeer) {
  const Span& span = Ended(absl::OkStatus());
  EXPECT_EQ(span.name, "vllm.grpc.engine.VllmEngine/Generate");
  EXPECT_EQ(Text(span, "rpc.system"), "grpc");
  EXPECT_EQ(Text(span, "rpc.service"), "vllm.grpc.engine.VllmEngine");
  EXPECT_EQ(Text(span, "rpc.method"), "Generate");
  EXPECT_EQ(Text(span, "rpc.grpc.status_code"), "0");
  EXPECT_EQ(Text(span, "network.peer.address"), "10.0.0.7");
  EXPECT_EQ(Text(span, "network.peer.port"), "51002");
  EXPECT_EQ(Text(span, "error.type"), "none");
  EXPECT_FALSE(span.failed);
  EXPECT_EQ(Text(Ended(absl::OkStatus(), "ipv6:%5B2001:db8::7%5D:80"), "network.peer.address"), "2001:db8::7");
  for (const char* peer : {"unix:/run/c3po.sock", "unix:", "", "ipv4:", "ipv4:10.0.0.7", "unknown"}) {
    EXPECT_EQ(Text(Ended(absl::OkStatus(), peer), "network.peer.address"), "none") << peer;
  }
}

TEST_F(CallSpanTest, IsNamedAfterTheRouteOfHttp) {
  const Span& span = Ended(absl::NotFoundError("m"), "ipv4:10.0.0.7:51002", Metrics::Rpc::kOpenAiChatCompletions);
  EXPECT_EQ(span.name, "POST /v1/chat/completions");
  EXPECT_EQ(Text(span, "http.request.method"), "POST");
  EXPECT_EQ(Text(span, "http.route"), "/v1/chat/completions");
  EXPECT_EQ(Text(span, "network.peer.address"), "10.0.0.7");
  EXPECT_EQ(Text(span, "error.type"), "NOT_FOUND");
  for (const char* key : {"rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code"})
    EXPECT_EQ(Text(span, key), "none") << key;
}

TEST_F(CallSpanTest, OnlyWhatIsTheServersFaultIsAnError) {
  const struct {
    absl::Status status;
    const char* code;
    const char* number;
    bool fault;
  } ends[] = {
      {absl::CancelledError("m"), "CANCELLED", "1", false},
      {absl::InvalidArgumentError("m"), "INVALID_ARGUMENT", "3", false},
      {absl::OutOfRangeError("m"), "INVALID_ARGUMENT", "3", false},
      {absl::DeadlineExceededError("m"), "DEADLINE_EXCEEDED", "4", true},
      {absl::NotFoundError("m"), "NOT_FOUND", "5", false},
      {absl::PermissionDeniedError("m"), "PERMISSION_DENIED", "7", false},
      {absl::ResourceExhaustedError("m"), "RESOURCE_EXHAUSTED", "8", false},
      {absl::FailedPreconditionError("m"), "FAILED_PRECONDITION", "9", false},
      {absl::InternalError("m"), "INTERNAL", "13", true},
      {absl::UnknownError("m"), "INTERNAL", "13", true},
      {absl::UnavailableError("m"), "UNAVAILABLE", "14", true},
      {absl::DataLossError("m"), "DATA_LOSS", "15", true},
      {absl::UnauthenticatedError("m"), "UNAUTHENTICATED", "16", false},
  };
  for (const auto& each : ends) {
    const Span& span = Ended(each.status);
    EXPECT_EQ(Text(span, "error.type"), each.code) << each.status;
    EXPECT_EQ(Text(span, "rpc.grpc.status_code"), each.number) << each.status;
    EXPECT_EQ(span.failed, each.fault) << each.status;
    EXPECT_EQ(span.failure, each.fault ? "m" : "") << each.status;
  }
}

TEST_F(CallSpanTest, ACallThatIsNotRecordedHasNone) {
  TraceContext parent;
  parent.trace_id = NewTraceId();
  parent.span_id = NewSpanId();
  EXPECT_EQ(BeginCallSpan(tracer_, parent, Metrics::Rpc::kScore, "", SteadyNow()), nullptr);
  EndCallSpan(nullptr, Metrics::Rpc::kScore, absl::InternalError("nothing happens"));
  EXPECT_TRUE(spans_.empty());
}

TEST(FullServiceName, IsThatOfAProtosPackage) {
  std::set<std::string> names;
  for (int i = 0; i < Metrics::kRpcCount; ++i) names.insert(FullServiceName(static_cast<Metrics::Rpc>(i)));
  EXPECT_EQ(names, (std::set<std::string>{"OpenAI", "c3po.v1.GenerationService", "c3po.v1.ReferenceService",
                                          "c3po.v1.ServerService", "inference.GRPCInferenceService",
                                          "vllm.grpc.engine.VllmEngine"}));
}

}  // namespace
}  // namespace c3po
