#include "server/rpc/health_monitor.h"

#include <grpcpp/channel.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "c3po/v1/generation.grpc.pb.h"
#include "index/base/device_failure.h"
#include "server/scheduler/engine.h"
#include "tests/server/partial_model.h"

namespace c3po {
namespace {

constexpr absl::Duration kStallMax = absl::Milliseconds(300);

// A model whose forward pass can be held: the seam by which the engine thread freezes.
class HeldModel final : public PartialModel {
 public:
  HeldModel() {
    shape_.vocabulary_size = 4;
    shape_.context_window = 100000;
  }
  absl::Status Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) override {
    if (slow) absl::SleepFor(absl::Milliseconds(2));
    const absl::MutexLock lock(&mu_);
    mu_.Await(absl::Condition(&free_));
    outputs.assign(segments.size(), {});
    return absl::OkStatus();
  }

  void Hold(bool held) {
    const absl::MutexLock lock(&mu_);
    free_ = !held;
  }
  std::atomic<bool> slow{false};

 private:
  absl::Mutex mu_;
  bool free_ ABSL_GUARDED_BY(mu_) = true;
};

class WaitingSink final : public SequenceSink {
 public:
  bool OnToken(const SampledToken&) override { return true; }
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnFinished(const absl::Status&, FinishReason, const SequenceTimings&) override { done.Notify(); }
  absl::Notification done;
};

// grpc.health.v1 on the wire: the status is field 1 of the answer.
char StatusOf(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  std::string text;
  if (bytes.Dump(&slices).ok()) {
    for (const grpc::Slice& slice : slices) text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text.size() == 2 ? text[1] : 0;
}

constexpr char kServing = 1, kNotServing = 2;

grpc::ByteBuffer ServiceRequest() {
  const grpc::Slice slice(
      std::string("\x0a\x19"
                  "c3po.v1.GenerationService"));
  return grpc::ByteBuffer(&slice, 1);
}

// A Health.Watch stream.
class Watch {
 public:
  explicit Watch(const std::shared_ptr<grpc::Channel>& channel) : stub_(channel) {
    call_ = stub_.PrepareCall(&context_, "/grpc.health.v1.Health/Watch", &queue_);
    call_->StartCall(this);
    Wait();
    call_->Write(ServiceRequest(), this);
    Wait();
    call_->WritesDone(this);
    Wait();
  }
  ~Watch() {
    context_.TryCancel();
    grpc::Status status;
    call_->Finish(&status, this);
    Wait();
    queue_.Shutdown();
    void* tag = nullptr;
    bool ok = false;
    while (queue_.Next(&tag, &ok)) {
    }
  }
  char Next() {
    grpc::ByteBuffer answer;
    call_->Read(&answer, this);
    return Wait() ? StatusOf(answer) : 0;
  }

 private:
  bool Wait() {
    void* tag = nullptr;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

class HealthMonitorTest : public testing::Test {
 protected:
  HealthMonitorTest() {
    ServerConfig config;
    config.listen = "127.0.0.1:0";
    auto server = GrpcServer::Start(config, /*metrics=*/nullptr);
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    channel_ = grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                         grpc::InsecureChannelCredentials(), arguments);
  }

  void StartMonitor() {
    server_->Open(LoadedParts());
    monitor_ = std::make_unique<HealthMonitor>(
        server_.get(),
        [this] {
          ++looks_;
          return engine_.StalledFor();
        },
        kStallMax, [this] { return store_lost_.load(); }, [this] { ++ends_; });
  }

  // Returns once the monitor has begun and ended a look.
  void AwaitALook() const {
    for (const int before = looks_; looks_ < before + 2;) absl::SleepFor(absl::Milliseconds(10));
  }

  std::shared_ptr<WaitingSink> Submit(int prompt_tokens) {
    auto sink = std::make_shared<WaitingSink>();
    SequenceRequest request;
    request.prompt.assign(static_cast<size_t>(prompt_tokens), 1);
    request.sampling.max_tokens = 1;
    request.sink = sink;
    EXPECT_TRUE(engine_.Submit(std::move(request)).ok());
    return sink;
  }

  HeldModel model_;
  Engine engine_{&model_, BatcherLimits{4, 100000, 10}, 16, nullptr};
  std::atomic<bool> store_lost_{false};
  std::atomic<int> looks_{0}, ends_{0};
  std::unique_ptr<GrpcServer> server_;
  std::unique_ptr<HealthMonitor> monitor_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(HealthMonitorTest, AServerThatLoadsIsNotServingAndSaysSoToCalls) {
  Watch watch(channel_);
  EXPECT_EQ(watch.Next(), kNotServing);
  const auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  const grpc::Status status = stub->Tokenize(&context, v1::TokenizeRequest(), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_NE(status.error_details().find("LOADING"), std::string::npos);
  StartMonitor();
  EXPECT_EQ(watch.Next(), kServing);
}

// For good: no step mends it. The process is told once to end, and calls are told why.
TEST_F(HealthMonitorTest, AServerWhoseDeviceFailedIsNotServingAndEnds) {
  StartMonitor();
  Watch watch(channel_);
  EXPECT_EQ(watch.Next(), kServing);
  EXPECT_EQ(ends_, 0);
  NoteDeviceFailure("computing: unspecified launch failure");
  EXPECT_EQ(watch.Next(), kNotServing);
  AwaitALook();
  EXPECT_EQ(ends_, 1);
  EXPECT_FALSE(monitor_->stalled());
  server_->CloseEntrance();
  const auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  v1::TokenizeResponse response;
  const grpc::Status status = stub->Tokenize(&context, v1::TokenizeRequest(), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_NE(status.error_details().find("DEVICE_FAILED"), std::string::npos);
  ForgetDeviceFailure();
}

TEST_F(HealthMonitorTest, AFrozenEngineIsNotServingUntilItMovesAgain) {
  StartMonitor();
  Watch watch(channel_);
  EXPECT_EQ(watch.Next(), kServing);
  model_.Hold(true);
  const absl::Time start = absl::Now();
  const auto sink = Submit(5);
  EXPECT_EQ(watch.Next(), kNotServing);
  EXPECT_GE(absl::Now() - start, kStallMax);
  EXPECT_TRUE(monitor_->stalled());
  EXPECT_FALSE(monitor_->serving());
  model_.Hold(false);
  EXPECT_EQ(watch.Next(), kServing);
  sink->done.WaitForNotification();
  EXPECT_FALSE(monitor_->stalled());
}

TEST_F(HealthMonitorTest, AServerWhoseStoreIsLostIsNotServingUntilItIsBack) {
  StartMonitor();
  Watch watch(channel_);
  EXPECT_EQ(watch.Next(), kServing);
  store_lost_ = true;
  EXPECT_EQ(watch.Next(), kNotServing);
  EXPECT_FALSE(monitor_->serving());
  EXPECT_FALSE(monitor_->stalled()) << "a restart would not bring it back";
  store_lost_ = false;
  EXPECT_EQ(watch.Next(), kServing);
}

TEST_F(HealthMonitorTest, IdlenessIsServing) {
  StartMonitor();
  absl::SleepFor(2 * kStallMax);
  AwaitALook();
  EXPECT_TRUE(monitor_->serving());
}

// A prompt that has been in work for longer than the limit is serving: the time counts from its last step. The machine
// may stall at any moment, so the test waits for the status and bounds no time.
TEST_F(HealthMonitorTest, EachStepOfALongPromptBeginsTheTimeAnew) {
  StartMonitor();
  Watch watch(channel_);
  EXPECT_EQ(watch.Next(), kServing);
  model_.Hold(true);
  model_.slow = true;
  const auto sink = Submit(99000);  // 9,900 steps of 10 tokens.
  EXPECT_EQ(watch.Next(), kNotServing);
  model_.Hold(false);
  EXPECT_EQ(watch.Next(), kServing);
  EXPECT_FALSE(sink->done.HasBeenNotified());
  model_.slow = false;
  sink->done.WaitForNotification();
}

TEST_F(HealthMonitorTest, DrainingIsNotServingForGoodAndNewCallsAreTurnedAway) {
  StartMonitor();
  Watch watch(channel_);
  EXPECT_EQ(watch.Next(), kServing);
  monitor_->Drain();
  server_->CloseEntrance();
  EXPECT_EQ(watch.Next(), kNotServing);
  AwaitALook();
  EXPECT_FALSE(monitor_->serving());
  const auto stub = v1::GenerationService::NewStub(channel_);
  grpc::ClientContext context;
  v1::DetokenizeResponse response;
  const grpc::Status status = stub->Detokenize(&context, v1::DetokenizeRequest(), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_NE(status.error_details().find("SHUTTING_DOWN"), std::string::npos);
}

// An hour would be the time that an open stream may take, were it not ended.
TEST_F(HealthMonitorTest, OpenWatchesDoNotHoldUpTheEnd) {
  StartMonitor();
  Watch watch(channel_);
  EXPECT_EQ(watch.Next(), kServing);
  server_->Shutdown(absl::Hours(1));
  EXPECT_EQ(watch.Next(), 0) << "the stream has ended";
}

}  // namespace
}  // namespace c3po
