#include "server/rpc/otlp_sender.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "index/base/mutex.h"
#include "index/base/steady_time.h"
#include "opentelemetry/proto/collector/trace/v1/trace_service.grpc.pb.h"
#include "server/metrics/logging.h"
#include "server/rpc/otlp_tracing.h"

namespace c3po {
namespace {

namespace otlp = opentelemetry::proto::collector::trace::v1;

// A collector of this process, that answers as it is told.
class Collector final : public otlp::TraceService::Service {
 public:
  Collector() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~Collector() override {
    hang_.Notify();
    server_->Shutdown(std::chrono::system_clock::now());
  }
  grpc::Status Export(grpc::ServerContext* context, const otlp::ExportTraceServiceRequest* request,
                      otlp::ExportTraceServiceResponse* response) override {
    {
      const MutexLock lock(mutex_);
      if (!hangs_) {
        last_ = *request;
        const auto key = context->client_metadata().find("x-api-key");
        if (key != context->client_metadata().end()) api_key_ = std::string(key->second.data(), key->second.size());
        response->mutable_partial_success()->set_rejected_spans(rejected_);
        return answer_;
      }
    }
    began.Notify();
    while (!context->IsCancelled() && !hang_.HasBeenNotified()) std::this_thread::yield();
    return grpc::Status::CANCELLED;
  }
  OtlpEndpoint endpoint() const { return {absl::StrCat("127.0.0.1:", port_), false, true}; }

  void Answer(const grpc::Status& answer, int64_t rejected = 0) {
    const MutexLock lock(mutex_);
    answer_ = answer;
    rejected_ = rejected;
  }
  void Hang() {
    const MutexLock lock(mutex_);
    hangs_ = true;
  }
  otlp::ExportTraceServiceRequest last() const {
    const MutexLock lock(mutex_);
    return last_;
  }
  std::string api_key() const {
    const MutexLock lock(mutex_);
    return api_key_;
  }
  absl::Notification began;  // an attempt that hangs

 private:
  mutable Mutex mutex_;
  grpc::Status answer_ ABSL_GUARDED_BY(mutex_);
  int64_t rejected_ ABSL_GUARDED_BY(mutex_) = 0;
  bool hangs_ ABSL_GUARDED_BY(mutex_) = false;
  otlp::ExportTraceServiceRequest last_ ABSL_GUARDED_BY(mutex_);
  std::string api_key_ ABSL_GUARDED_BY(mutex_);
  int port_ = 0;
  absl::Notification hang_;
  std::unique_ptr<grpc::Server> server_;
};

std::vector<Span> Batch() {
  Span span;
  span.trace_id.fill(0xab);
  span.span_id.fill(0xcd);
  span.flags = 0x101;
  span.trace_state = "a=1";
  span.name = "call";
  span.kind = Span::Kind::kServer;
  span.begin_unix_nanoseconds = 1'700'000'000'000'000'001;
  span.end_unix_nanoseconds = 1'700'000'000'000'000'009;
  span.attributes = {{"text", std::string("t")},
                     {"number", int64_t{-7}},
                     {"double", 0.5},
                     {"flag", true},
                     {"texts", std::vector<std::string>{"a", "b"}}};
  span.events = {{"first_token", 1'700'000'000'000'000'005}};
  Span child = span;
  child.parent_id = span.span_id;
  child.kind = Span::Kind::kInternal;
  child.failed = true;
  child.failure = "it broke";
  return {span, child};
}

OtlpSender::Options OptionsOf(const Collector& collector) {
  return {collector.endpoint(), "", {{"x-api-key", "secret"}}, {{"service.name", "c3pod"}}, "1.2.3"};
}

TEST(OtlpSender, SendsEachFieldOfASpan) {
  Collector collector;
  OtlpSender sender(OptionsOf(collector));
  const SendOutcome outcome = sender.Send(Batch(), absl::Minutes(1));
  ASSERT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.rejected, 0);
  EXPECT_EQ(collector.api_key(), "secret");
  const otlp::ExportTraceServiceRequest sent = collector.last();
  ASSERT_EQ(sent.resource_spans_size(), 1);
  const auto& all = sent.resource_spans(0);
  EXPECT_EQ(all.resource().attributes(0).key(), "service.name");
  EXPECT_EQ(all.resource().attributes(0).value().string_value(), "c3pod");
  EXPECT_EQ(all.scope_spans(0).scope().version(), "1.2.3");
  ASSERT_EQ(all.scope_spans(0).spans_size(), 2);
  const auto& span = all.scope_spans(0).spans(0);
  EXPECT_EQ(span.trace_id(), std::string(16, '\xab'));
  EXPECT_EQ(span.span_id(), std::string(8, '\xcd'));
  EXPECT_EQ(span.parent_span_id(), "");
  EXPECT_EQ(span.trace_state(), "a=1");
  EXPECT_EQ(span.flags(), 0x101u);
  EXPECT_EQ(span.name(), "call");
  EXPECT_EQ(span.kind(), opentelemetry::proto::trace::v1::Span::SPAN_KIND_SERVER);
  EXPECT_EQ(span.start_time_unix_nano(), 1'700'000'000'000'000'001u);
  EXPECT_EQ(span.end_time_unix_nano(), 1'700'000'000'000'000'009u);
  ASSERT_EQ(span.attributes_size(), 5);
  EXPECT_EQ(span.attributes(0).value().string_value(), "t");
  EXPECT_EQ(span.attributes(1).value().int_value(), -7);
  EXPECT_EQ(span.attributes(2).value().double_value(), 0.5);
  EXPECT_TRUE(span.attributes(3).value().bool_value());
  EXPECT_EQ(span.attributes(4).value().array_value().values(1).string_value(), "b");
  EXPECT_EQ(span.events(0).name(), "first_token");
  EXPECT_EQ(span.events(0).time_unix_nano(), 1'700'000'000'000'000'005u);
  EXPECT_FALSE(span.has_status());
  const auto& child = all.scope_spans(0).spans(1);
  EXPECT_EQ(child.parent_span_id(), std::string(8, '\xcd'));
  EXPECT_EQ(child.kind(), opentelemetry::proto::trace::v1::Span::SPAN_KIND_INTERNAL);
  EXPECT_EQ(child.status().code(), opentelemetry::proto::trace::v1::Status::STATUS_CODE_ERROR);
  EXPECT_EQ(child.status().message(), "it broke");
}

TEST(OtlpSender, WhatTheCollectorRejectsIsCounted) {
  Collector collector;
  collector.Answer(grpc::Status::OK, 2);
  const SendOutcome outcome = OtlpSender(OptionsOf(collector)).Send(Batch(), absl::Minutes(1));
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.rejected, 2);
}

TEST(OtlpSender, WhichFailuresMayBeTriedAgainIsTheProtocols) {
  Collector collector;
  OtlpSender sender(OptionsOf(collector));
  using grpc::StatusCode;
  for (const auto& [code, retry] : {std::pair(StatusCode::CANCELLED, true),
                                    {StatusCode::UNKNOWN, false},
                                    {StatusCode::INVALID_ARGUMENT, false},
                                    {StatusCode::DEADLINE_EXCEEDED, true},
                                    {StatusCode::NOT_FOUND, false},
                                    {StatusCode::PERMISSION_DENIED, false},
                                    {StatusCode::RESOURCE_EXHAUSTED, false},
                                    {StatusCode::FAILED_PRECONDITION, false},
                                    {StatusCode::ABORTED, true},
                                    {StatusCode::OUT_OF_RANGE, true},
                                    {StatusCode::UNIMPLEMENTED, false},
                                    {StatusCode::INTERNAL, false},
                                    {StatusCode::UNAVAILABLE, true},
                                    {StatusCode::DATA_LOSS, true},
                                    {StatusCode::UNAUTHENTICATED, false}}) {
    collector.Answer(grpc::Status(code, "why"));
    const SendOutcome outcome = sender.Send(Batch(), absl::Minutes(1));
    EXPECT_EQ(static_cast<int>(outcome.status.code()), static_cast<int>(code));
    EXPECT_EQ(outcome.status.message(), "why");
    EXPECT_EQ(outcome.retry, retry) << code;
    EXPECT_EQ(outcome.retry_after, absl::ZeroDuration());
  }
}

TEST(OtlpSender, ACollectorMaySayWhenToTryAgain) {
  google::rpc::RetryInfo retry;
  retry.mutable_retry_delay()->set_seconds(3);
  google::rpc::Status details;
  details.add_details()->PackFrom(retry);
  Collector collector;
  collector.Answer(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "full", details.SerializeAsString()));
  const SendOutcome outcome = OtlpSender(OptionsOf(collector)).Send(Batch(), absl::Minutes(1));
  EXPECT_TRUE(outcome.retry);
  EXPECT_EQ(outcome.retry_after, absl::Seconds(3));
}

TEST(OtlpSender, ACollectorThatIsAwayIsUnavailableAtOnce) {
  OtlpSender sender({{"127.0.0.1:1", false, true}, "", {}, {}, "0"});
  const absl::Time start = SteadyNow();
  const SendOutcome outcome = sender.Send(Batch(), absl::Minutes(5));
  EXPECT_TRUE(absl::IsUnavailable(outcome.status)) << outcome.status;
  EXPECT_TRUE(outcome.retry);
  EXPECT_LT(SteadyNow() - start, absl::Minutes(1));
}

TEST(OtlpSender, ItsLimitEndsAnAttempt) {
  Collector collector;
  collector.Hang();
  const SendOutcome outcome = OtlpSender(OptionsOf(collector)).Send(Batch(), absl::Milliseconds(200));
  EXPECT_TRUE(absl::IsDeadlineExceeded(outcome.status)) << outcome.status;
  EXPECT_TRUE(outcome.retry);
}

TEST(OtlpSender, CancelEndsTheAttemptThatWaitsAndThoseThatFollow) {
  Collector collector;
  collector.Hang();
  OtlpSender sender(OptionsOf(collector));
  SendOutcome outcome;
  std::thread waits([&] { outcome = sender.Send(Batch(), absl::Minutes(5)); });
  collector.began.WaitForNotification();
  sender.Cancel();
  waits.join();
  EXPECT_TRUE(absl::IsCancelled(outcome.status)) << outcome.status;
  EXPECT_TRUE(absl::IsCancelled(sender.Send(Batch(), absl::Minutes(5)).status));
}

TEST(OtlpTracing, WithoutAnEndpointNothingIsRead) {
  const ReadVariable read = [](const char* name) -> std::string {
    ADD_FAILURE() << name << " was read";
    return "";
  };
  const auto tracing = OtlpTracing::Make(ServerConfig(), "0", nullptr, read);
  ASSERT_TRUE(tracing.ok()) << tracing.status();
  EXPECT_EQ(*tracing, nullptr);
}

TEST(OtlpTracing, WrongFilesAndVariablesAreNamed) {
  ServerConfig config;
  config.otlp_traces_endpoint = "https://localhost:4317";
  const ReadVariable none = [](const char*) { return std::string(); };
  config.otlp_traces_ca = testing::TempDir() + "/absent.pem";
  const auto message = [&](const ReadVariable& read) {
    return std::string(OtlpTracing::Make(config, "0", nullptr, read).status().message());
  };
  EXPECT_EQ(message(none).rfind("--otlp-traces-ca: ", 0), 0u) << message(none);
  config.otlp_traces_ca = testing::TempDir() + "/ca.pem";
  std::ofstream(config.otlp_traces_ca) << "not PEM";
  EXPECT_NE(message(none).find("has no certificate in PEM"), std::string::npos) << message(none);
  config.otlp_traces_ca = "";
  const auto wrong = [](const char* name) {
    return std::string(name) == "OTEL_EXPORTER_OTLP_HEADERS" ? std::string("secret") : std::string();
  };
  EXPECT_EQ(message(wrong).rfind("OTEL_EXPORTER_OTLP_HEADERS: ", 0), 0u) << message(wrong);
}

TEST(OtlpTracing, SpansHaveTheServersNameVersionAndInstance) {
  std::ostringstream log;
  SetLogStream(&log);
  Collector collector;
  ServerConfig config;
  config.otlp_traces_endpoint = absl::StrCat("http://", collector.endpoint().target);
  const ReadVariable read = [](const char* name) -> std::string {
    if (std::string(name) == "OTEL_RESOURCE_ATTRIBUTES")
      return "service.name=other,service.version=9,k8s.pod.name=c3po-0";
    return std::string(name) == "OTEL_SERVICE_NAME" ? "mine" : "";
  };
  const auto tracing = OtlpTracing::Make(config, "1.2.3", nullptr, read);
  ASSERT_TRUE(tracing.ok()) << tracing.status();
  (*tracing)->tracer().Begin(std::nullopt, "call", SteadyNow())->End(SteadyNow(), false, "");
  (*tracing)->Stop();
  SetLogStream(nullptr);
  std::map<std::string, std::string> resource;
  const otlp::ExportTraceServiceRequest sent = collector.last();
  ASSERT_EQ(sent.resource_spans_size(), 1);
  for (const auto& pair : sent.resource_spans(0).resource().attributes()) {
    EXPECT_TRUE(resource.emplace(pair.key(), pair.value().string_value()).second) << pair.key() << " twice";
  }
  EXPECT_EQ(resource["service.name"], "mine");
  EXPECT_EQ(resource["service.version"], "9");
  EXPECT_EQ(resource["k8s.pod.name"], "c3po-0");
  EXPECT_EQ(resource["service.instance.id"].size(), 36u);
  EXPECT_EQ(resource["service.instance.id"][14], '4');
  EXPECT_NE(log.str().find("\"event\":\"traces\""), std::string::npos) << log.str();
}

}  // namespace
}  // namespace c3po
