#include "client/c3po_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "tests/client/fake_server.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Time that passes only in Sleep().
class FakeClock : public RetryClock {
 public:
  absl::Time Now() override {
    absl::MutexLock lock(&mu_);
    return now_;
  }
  void Sleep(absl::Duration duration, Cancellation*) override {
    absl::MutexLock lock(&mu_);
    now_ += duration;
    pauses_.push_back(duration);
  }
  std::vector<absl::Duration> pauses() {
    absl::MutexLock lock(&mu_);
    return pauses_;
  }

 private:
  absl::Mutex mu_;
  absl::Time now_ ABSL_GUARDED_BY(mu_) = absl::Now();
  std::vector<absl::Duration> pauses_ ABSL_GUARDED_BY(mu_);
};

class ClientTest : public ::testing::Test {
 protected:
  ClientOptions Options() {
    ClientOptions options;
    options.clock = &clock_;
    options.retry.jitter = 0;
    return options;
  }

  static v1::GenerateRequest Ask(const std::string& prompt) {
    v1::GenerateRequest request;
    request.set_prompt(prompt);
    return request;
  }

  // A source of `count` samples numbered from 1.
  static std::function<absl::StatusOr<std::optional<NumberedSample>>()> Samples(uint64_t count, uint64_t* given) {
    return [=]() -> absl::StatusOr<std::optional<NumberedSample>> {
      if (*given == count) return std::nullopt;
      NumberedSample numbered;
      numbered.sequence = ++*given;
      numbered.sample.set_prompt(absl::StrCat("prompt ", *given));
      numbered.sample.set_answer(" yes");
      return numbered;
    };
  }

  FakeClock clock_;
  FakeServer server_;
  Client client_{InsecureChannel(server_.address()), Options()};
};

TEST_F(ClientTest, GenerateHandsOverEveryEventInOrder) {
  std::vector<v1::GenerateResponse::EventCase> cases;
  std::string text;
  ASSERT_TRUE(client_
                  .Generate(Ask("hi"),
                            [&](const v1::GenerateResponse& event) {
                              cases.push_back(event.event_case());
                              text += event.delta().text();
                              return true;
                            })
                  .ok());
  EXPECT_THAT(cases, ElementsAre(v1::GenerateResponse::kOptimization, v1::GenerateResponse::kDelta,
                                 v1::GenerateResponse::kDelta, v1::GenerateResponse::kSummary));
  EXPECT_EQ(text, "Hello world");
}

TEST_F(ClientTest, TriesAgainAfterThePushbackThatTheServerAsksFor) {
  int calls = 0;
  server_.on_info = [&](grpc::ServerContext* context, v1::GetServerInfoResponse* response) {
    if (++calls < 3) {
      context->AddTrailingMetadata("grpc-retry-pushback-ms", absl::StrCat(1000 * calls + 234));
      return Overloaded(absl::Seconds(50));
    }
    response->set_version("third");
    return grpc::Status::OK;
  };
  const auto info = client_.GetServerInfo();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->version(), "third");
  EXPECT_THAT(clock_.pauses(), ElementsAre(absl::Milliseconds(1234), absl::Milliseconds(2234)));
}

TEST_F(ClientTest, WaitsAtLeastAsLongAsRetryInfoSays) {
  int calls = 0;
  server_.on_info = [&](grpc::ServerContext*, v1::GetServerInfoResponse*) {
    return ++calls == 1 ? Overloaded(absl::Milliseconds(4500)) : grpc::Status::OK;
  };
  ASSERT_TRUE(client_.GetServerInfo().ok());
  EXPECT_THAT(clock_.pauses(), ElementsAre(absl::Milliseconds(4500)));
}

TEST_F(ClientTest, BacksOffExponentiallyAndGivesUpAfterItsAttempts) {
  server_.on_info = [](grpc::ServerContext*, v1::GetServerInfoResponse*) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting");
  };
  EXPECT_EQ(client_.GetServerInfo().status().ToString(), "UNAVAILABLE: restarting (after 4 attempts)");
  EXPECT_EQ(server_.info_calls(), 4);
  EXPECT_THAT(clock_.pauses(), ElementsAre(absl::Milliseconds(200), absl::Milliseconds(400), absl::Milliseconds(800)));
}

TEST_F(ClientTest, ANegativePushbackForbidsAnotherAttempt) {
  server_.on_info = [](grpc::ServerContext* context, v1::GetServerInfoResponse*) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms", "-1");
    return Overloaded(absl::ZeroDuration());
  };
  EXPECT_EQ(client_.GetServerInfo().status().ToString(), "RESOURCE_EXHAUSTED: the queue is full [reason QUEUE_FULL]");
  EXPECT_EQ(server_.info_calls(), 1);
}

TEST_F(ClientTest, APauseThatWouldPassTheDeadlineIsNotTaken) {
  server_.on_info = [](grpc::ServerContext*, v1::GetServerInfoResponse*) { return Overloaded(absl::Seconds(20)); };
  CallOptions options;
  options.timeout = absl::Seconds(30);
  const absl::Status status = client_.GetServerInfo(options).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("(after 2 attempts; the next would start past the deadline)"));
  EXPECT_THAT(clock_.pauses(), ElementsAre(absl::Seconds(20)));
}

TEST_F(ClientTest, OtherErrorsAreFinal) {
  server_.on_info = [](grpc::ServerContext*, v1::GetServerInfoResponse*) { return BadField("a.b", "is wrong"); };
  EXPECT_EQ(client_.GetServerInfo().status().ToString(), "INVALID_ARGUMENT: a.b: is wrong [reason INVALID_FIELD]");
  EXPECT_EQ(server_.info_calls(), 1);
}

TEST_F(ClientTest, AStreamIsTriedAgainBeforeItsFirstMessage) {
  std::atomic<int> calls = 0;
  server_.on_generate = [&](grpc::ServerContext*, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>* writer) {
    if (++calls == 1) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting");
    writer->Write(v1::GenerateResponse());
    return grpc::Status::OK;
  };
  int events = 0;
  EXPECT_TRUE(client_.Generate(Ask("hi"), [&](const v1::GenerateResponse&) { return ++events > 0; }).ok());
  EXPECT_EQ(events, 1);
  EXPECT_EQ(calls, 2);
}

TEST_F(ClientTest, AStreamIsNotTriedAgainAfterItsFirstMessage) {
  std::atomic<int> calls = 0;
  server_.on_generate = [&](grpc::ServerContext*, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>* writer) {
    ++calls;
    writer->Write(v1::GenerateResponse());
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
  };
  const absl::Status status = client_.Generate(Ask("hi"), [](const v1::GenerateResponse&) { return true; });
  EXPECT_EQ(status.ToString(), "UNAVAILABLE: gone");
  EXPECT_EQ(calls, 1);
}

TEST_F(ClientTest, TheCallbackCancelsTheCallOnTheServerToo) {
  absl::Notification seen;
  server_.on_generate = [&](grpc::ServerContext* context, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>* writer) {
    writer->Write(v1::GenerateResponse());
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    seen.Notify();
    return grpc::Status::CANCELLED;
  };
  const absl::Status status = client_.Generate(Ask("hi"), [](const v1::GenerateResponse&) { return false; });
  EXPECT_EQ(status.ToString(), "CANCELLED: cancelled by the caller");
  EXPECT_TRUE(seen.WaitForNotificationWithTimeout(absl::Seconds(60)));
}

TEST_F(ClientTest, TheDeadlineEndsACallThatHangs) {
  server_.on_generate = [](grpc::ServerContext* context, const v1::GenerateRequest&,
                           grpc::ServerWriter<v1::GenerateResponse>*) {
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return grpc::Status::CANCELLED;
  };
  CallOptions options;
  options.timeout = absl::Milliseconds(100);
  EXPECT_TRUE(absl::IsDeadlineExceeded(client_.Generate(
      Ask("hi"), [](const v1::GenerateResponse&) { return true; }, options)));
}

TEST_F(ClientTest, ACancellationEndsCallsFromAnotherThread) {
  Cancellation cancellation;
  absl::Notification started;
  server_.on_generate = [&](grpc::ServerContext* context, const v1::GenerateRequest&,
                            grpc::ServerWriter<v1::GenerateResponse>*) {
    started.Notify();
    while (!context->IsCancelled()) absl::SleepFor(absl::Milliseconds(1));
    return grpc::Status::CANCELLED;
  };
  std::thread canceller([&] {
    started.WaitForNotification();
    cancellation.Cancel();
  });
  CallOptions options;
  options.cancellation = &cancellation;
  EXPECT_TRUE(absl::IsCancelled(client_.Generate(
      Ask("hi"), [](const v1::GenerateResponse&) { return true; }, options)));
  canceller.join();
  EXPECT_TRUE(absl::IsCancelled(client_.GetServerInfo(options).status()));
  EXPECT_EQ(server_.info_calls(), 0);
  cancellation.Reset();
  EXPECT_TRUE(client_.GetServerInfo(options).ok());
}

TEST_F(ClientTest, ManyThreadsShareOneClient) {
  std::vector<std::thread> threads;
  std::atomic<int> right = 0;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      v1::TokenizeRequest request;
      for (int i = 0; i < 20; ++i) {
        request.set_text(std::string(static_cast<size_t>(t + 1), static_cast<char>('a' + i)));
        const auto response = client_.Tokenize(request);
        if (response.ok() && response->ids_size() == t + 1 && response->ids(0) == static_cast<uint32_t>('a' + i)) {
          ++right;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 8 * 20);
}

TEST_F(ClientTest, TextThatIsNotUtf8IsRefusedBeforeItIsSent) {
  const absl::Status status = client_.Generate(Ask("\xff"), [](const v1::GenerateResponse&) { return true; });
  EXPECT_EQ(status.ToString(), "INVALID_ARGUMENT: prompt: not valid UTF-8");
  EXPECT_TRUE(server_.generate_requests().empty());
}

TEST_F(ClientTest, AddReferencesSendsTheCollectionOnceAndEverySampleInOrder) {
  uint64_t given = 0;
  std::vector<uint64_t> verdicts;
  const absl::Status status =
      client_.AddReferences("science", Samples(100, &given), [&](const v1::AddReferencesResponse& response) {
        verdicts.push_back(response.verdicts(0).sequence());
        return true;
      });
  ASSERT_TRUE(status.ok()) << status;
  const auto requests = server_.add_requests();
  ASSERT_EQ(requests.size(), 100);
  ASSERT_EQ(verdicts.size(), 100);
  for (size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(requests[i].collection(), i == 0 ? "science" : "");
    EXPECT_EQ(requests[i].sequence(), i + 1);
    EXPECT_EQ(requests[i].sample().prompt(), absl::StrCat("prompt ", i + 1));
    EXPECT_EQ(verdicts[i], i + 1);
  }
}

TEST_F(ClientTest, AddReferencesTakesNoMoreSamplesThanItsWindowHolds) {
  constexpr uint64_t kWindow = 8;
  uint64_t given = 0;
  uint64_t acknowledged = 0;
  uint64_t widest = 0;
  // Verdicts in batches of the whole window: the server waits for all of it before it answers.
  server_.on_add = [&](grpc::ServerContext*, FakeServer::ImportStream* stream) {
    v1::AddReferencesRequest request;
    v1::AddReferencesResponse response;
    while (stream->Read(&request)) {
      response.add_verdicts()->set_sequence(request.sequence());
      if (response.verdicts_size() < static_cast<int>(kWindow)) continue;
      stream->Write(response);
      response.Clear();
    }
    if (response.verdicts_size() > 0) stream->Write(response);
    return grpc::Status::OK;
  };
  const auto source = Samples(100, &given);
  const absl::Status status = client_.AddReferences(
      "c",
      [&] {
        auto sample = source();
        widest = std::max(widest, given - acknowledged);
        return sample;
      },
      [&](const v1::AddReferencesResponse& response) {
        acknowledged += response.verdicts_size();
        return true;
      },
      {kWindow});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(acknowledged, 100);
  EXPECT_EQ(widest, kWindow);
}

TEST_F(ClientTest, AnImportThatFailsBeforeItsFirstResponseIsSentAgainWhole) {
  std::atomic<int> calls = 0;
  std::vector<uint64_t> second_attempt;
  server_.on_add = [&](grpc::ServerContext*, FakeServer::ImportStream* stream) {
    v1::AddReferencesRequest request;
    if (++calls == 1) {
      for (int i = 0; i < 5; ++i) stream->Read(&request);
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "restarting");
    }
    while (stream->Read(&request)) {
      EXPECT_EQ(request.collection(), second_attempt.empty() ? "c" : "");
      second_attempt.push_back(request.sequence());
      v1::AddReferencesResponse response;
      response.add_verdicts()->set_sequence(request.sequence());
      stream->Write(response);
    }
    return grpc::Status::OK;
  };
  uint64_t given = 0;
  const absl::Status status =
      client_.AddReferences("c", Samples(20, &given), [](const v1::AddReferencesResponse&) { return true; });
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(second_attempt.size(), 20);
  for (size_t i = 0; i < 20; ++i) EXPECT_EQ(second_attempt[i], i + 1);
}

TEST_F(ClientTest, AnImportThatFailsLaterIsNotTriedAgain) {
  std::atomic<int> calls = 0;
  server_.on_add = [&](grpc::ServerContext*, FakeServer::ImportStream* stream) {
    ++calls;
    v1::AddReferencesRequest request;
    stream->Read(&request);
    v1::AddReferencesResponse response;
    response.add_verdicts()->set_sequence(request.sequence());
    stream->Write(response);
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "disk full");
  };
  uint64_t given = 0;
  const absl::Status status =
      client_.AddReferences("c", Samples(20, &given), [](const v1::AddReferencesResponse&) { return true; });
  EXPECT_EQ(status.ToString(), "UNAVAILABLE: disk full");
  EXPECT_EQ(calls, 1);
}

TEST_F(ClientTest, AnImportMissingVerdictsIsDataLoss) {
  server_.on_add = [](grpc::ServerContext*, FakeServer::ImportStream* stream) {
    v1::AddReferencesRequest request;
    while (stream->Read(&request)) {
    }
    return grpc::Status::OK;
  };
  uint64_t given = 0;
  const absl::Status status =
      client_.AddReferences("c", Samples(3, &given), [](const v1::AddReferencesResponse&) { return true; });
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("3 samples without a verdict, the first being number 1"));
}

TEST_F(ClientTest, AnErrorOfTheSourceEndsTheImportInOrder) {
  uint64_t given = 0;
  int verdicts = 0;
  const auto source = Samples(100, &given);
  const absl::Status status = client_.AddReferences(
      "c",
      [&]() -> absl::StatusOr<std::optional<NumberedSample>> {
        if (given == 4) return absl::NotFoundError("the file went away");
        return source();
      },
      [&](const v1::AddReferencesResponse& response) {
        verdicts += response.verdicts_size();
        return true;
      });
  EXPECT_EQ(status.ToString(), "NOT_FOUND: the file went away");
  EXPECT_EQ(verdicts, 4);
}

TEST_F(ClientTest, SequencesOfAnImportMustRise) {
  const absl::Status status = client_.AddReferences(
      "c",
      []() -> absl::StatusOr<std::optional<NumberedSample>> {
        return NumberedSample{7, {}};
      },
      [](const v1::AddReferencesResponse&) { return true; });
  EXPECT_EQ(status.ToString(), "INVALID_ARGUMENT: sample 7 after sample 7: sequences must rise");
}

TEST_F(ClientTest, TheImportsCallbackCancelsIt) {
  uint64_t given = 0;
  const absl::Status status = client_.AddReferences("c", Samples(1000000, &given),
                                                    [](const v1::AddReferencesResponse&) { return false; }, {16});
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_LE(given, 1000);
}

TEST_F(ClientTest, ForEachReferenceWalksThePagesUntilToldToStop) {
  v1::ListReferencesRequest request;
  request.set_page_size(2);
  std::vector<std::string> ids;
  ASSERT_TRUE(client_
                  .ForEachReference(request,
                                    [&](const v1::Reference& reference) {
                                      ids.push_back(reference.id());
                                      return true;
                                    })
                  .ok());
  EXPECT_THAT(ids, ElementsAre("ref-0", "ref-1", "ref-2", "ref-3", "ref-4"));
  int seen = 0;
  ASSERT_TRUE(client_.ForEachReference(request, [&](const v1::Reference&) { return ++seen < 3; }).ok());
  EXPECT_EQ(seen, 3);
}

TEST_F(ClientTest, AServerThatRepeatsAPageTokenDoesNotTrapTheClient) {
  server_.on_list = [](grpc::ServerContext*, const v1::ListReferencesRequest&, v1::ListReferencesResponse* response) {
    response->set_next_page_token("again");
    return grpc::Status::OK;
  };
  EXPECT_TRUE(absl::IsInternal(client_.ForEachReference({}, [](const v1::Reference&) { return true; })));
}

TEST(IsThisMachine, OnlyWhatCannotBeAnother) {
  for (const char* local : {"unix:/run/c3po", "unix-abstract:c3po", "localhost", "localhost:50051", "127.0.0.1:50051",
                            "127.255.0.3:1", "[::1]:50051"}) {
    EXPECT_TRUE(IsThisMachine(local)) << local;
  }
  for (const char* other :
       {"", "10.0.0.7:50051", "127.example.org:50051", "127.0.0.1.example.org:1", "localhost.example.org:1", "[::2]:1",
        "[::ffff:10.0.0.7]:1", "dns:///c3pod:50051", "c3pod:50051", "0.0.0.0:50051"}) {
    EXPECT_FALSE(IsThisMachine(other)) << other;
  }
}

TEST_F(ClientTest, WaitUntilServingReturnsWhenTheServerServes) {
  EXPECT_TRUE(client_.WaitUntilServing(absl::Seconds(60)).ok());
}

// Of the time, a nanosecond is left for the last question, which nobody can answer in it.
TEST_F(ClientTest, WaitUntilServingSaysWhatTheServerSaidLast) {
  server_.SetServing(false);
  EXPECT_EQ(client_.WaitUntilServing(absl::Seconds(10) + absl::Nanoseconds(1)).ToString(),
            "DEADLINE_EXCEEDED: the server is not serving after 10.000000001s: it says NOT_SERVING");
  EXPECT_FALSE(clock_.pauses().empty());
}

TEST_F(ClientTest, WaitUntilServingWithoutAServerSaysSo) {
  Client nobody(InsecureChannel("127.0.0.1:1"), Options());
  const absl::Status status = nobody.WaitUntilServing(absl::Seconds(1));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("not serving after 1s: "));
}

}  // namespace
}  // namespace c3po
