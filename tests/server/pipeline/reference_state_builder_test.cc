#include "server/pipeline/reference_state_builder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "index/base/mutex.h"
#include "tests/server/pipeline/made_up_pipeline.h"

namespace c3po {
namespace {

// What a waiter heard.
class Heard {
 public:
  ReferenceStateBuilder::Ready Ready() {
    return [this](const absl::Status& said) {
      {
        const MutexLock lock(mutex_);  // ThreadSanitizer does not see what a Notification orders.
        status_ = said;
      }
      done_.Notify();
    };
  }
  bool Wait() { return done_.WaitForNotificationWithTimeout(absl::Seconds(60)); }
  bool HasHeard() const { return done_.HasBeenNotified(); }
  absl::Status status() {
    const MutexLock lock(mutex_);
    return status_;
  }

 private:
  absl::Notification done_;
  Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

class ReferenceStateBuilderTest : public MadeUpPipelineTest {
 protected:
  ReferenceStateBuilderTest() {
    model_.answers = true;
    catalog_.reset();
    OpenCatalog(kEmbedderDigest);
    states_ = std::make_unique<ReferenceStateBuilder>(&engine_, catalog_.get(), &text_);
  }
  void Insert(int begin, int end) { ASSERT_TRUE(catalog_->Insert(MakeReferences("c", begin, end)).ok()); }

  std::unique_ptr<ReferenceStateBuilder> states_;
};

TEST_F(ReferenceStateBuilderTest, MakesWhatIsMissingOnceAndLaterWhatCameSince) {
  std::atomic<int> passes{0};
  model_.on_forward = [&] { ++passes; };
  EXPECT_TRUE(states_->WhenReady({}, "c", 2, nullptr));  // There is no reference.
  Insert(0, 70);
  Heard first, second, other_layer;
  EXPECT_FALSE(states_->WhenReady({}, "c", 2, first.Ready()));
  (void)(states_->WhenReady({}, "c", 2, second.Ready()) && (second.Ready()(absl::OkStatus()), true));
  EXPECT_FALSE(states_->WhenReady({}, "c", 3, other_layer.Ready()));
  for (Heard* heard : {&first, &second, &other_layer}) {
    ASSERT_TRUE(heard->Wait());
    EXPECT_TRUE(heard->status().ok()) << heard->status();
  }
  EXPECT_TRUE(states_->WhenReady({}, "c", 2, nullptr));
  // The state is the one of the prompt's last token, entering the layer, of unit length.
  const auto record = *catalog_->GetRecord(MakeReference("c", 7).id);
  const NeighborCase tokens = *text_.NeighborTokens(*record, true);
  Segment segment;
  segment.tokens = tokens.prompt;
  segment.state_layer = 2;
  const std::vector<float> state = *QueryEmbedding::OfStates(MadeUpModel::StateOf(segment));
  const auto found = *catalog_->Search("c", state, 1, false, 2);
  ASSERT_EQ(found.size(), 1u);
  EXPECT_LT(found[0].distance, 1e-6);
  EXPECT_GT((*catalog_->Search("c", state, 1, false, 3))[0].distance, 1e-3);
  const int before = passes;
  Insert(70, 75);
  Heard again;
  EXPECT_FALSE(states_->WhenReady({}, "c", 2, again.Ready()));
  ASSERT_TRUE(again.Wait());
  EXPECT_TRUE(again.status().ok()) << again.status();
  EXPECT_GT(passes, before);
  EXPECT_LE(passes, before + 10);  // A prompt and its end each, at most.
}

TEST_F(ReferenceStateBuilderTest, WhoeverLeavesIsLetGoAndNothingMoreIsMade) {
  Insert(0, 100);
  CallContext context;
  auto cancelled = std::make_shared<std::atomic<bool>>(false);
  context.cancelled = cancelled;
  model_.on_forward = [&] { *cancelled = true; };
  Heard gone;
  EXPECT_FALSE(states_->WhenReady(context, "c", 1, gone.Ready()));
  ASSERT_TRUE(gone.Wait());
  EXPECT_EQ(gone.status().code(), absl::StatusCode::kCancelled);
  EXPECT_GE(catalog_->WithoutState("c", 1, 100)->size(), 60u);  // The batch that ran was kept.
  CallContext late;
  late.deadline = SteadyNow() - absl::Seconds(1);
  Heard missed;
  EXPECT_FALSE(states_->WhenReady(late, "c", 1, missed.Ready()));
  ASSERT_TRUE(missed.Wait());
  EXPECT_EQ(missed.status().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(ReferenceStateBuilderTest, WhatFailsIsTold) {
  Insert(0, 5);
  model_.broken = true;
  Heard broken;
  EXPECT_FALSE(states_->WhenReady({}, "c", 1, broken.Ready()));
  ASSERT_TRUE(broken.Wait());
  EXPECT_EQ(broken.status().message(), "the device is gone");
  model_.broken = false;
  Heard better;
  EXPECT_FALSE(states_->WhenReady({}, "c", 1, better.Ready()));
  ASSERT_TRUE(better.Wait());
  EXPECT_TRUE(better.status().ok()) << better.status();
}

// For which the model gives no numbers: none is a neighbor, and nobody waits for them again.
TEST_F(ReferenceStateBuilderTest, ReferencesWithoutNumbersAreLeftOut) {
  Insert(0, 5);
  model_.answers = false;
  Heard heard;
  EXPECT_FALSE(states_->WhenReady({}, "c", 1, heard.Ready()));
  ASSERT_TRUE(heard.Wait());
  EXPECT_TRUE(heard.status().ok()) << heard.status();
  EXPECT_TRUE(states_->WhenReady({}, "c", 1, nullptr));
  EXPECT_TRUE(catalog_->Search("c", std::vector<float>(8, 1), 3, false, 1)->empty());
}

TEST_F(ReferenceStateBuilderTest, TheTokensAreOwedByTheCallThatWaits) {
  Insert(0, 5);
  const auto limiter = RateLimiter::Make({}, nullptr, SteadyNow);
  CallContext context;
  CallerRates rates;
  rates.tokens_per_minute = 3;
  context.rates = *limiter->Admit("ann", rates);
  Heard heard;
  EXPECT_FALSE(states_->WhenReady(context, "c", 1, heard.Ready()));
  ASSERT_TRUE(heard.Wait());
  EXPECT_TRUE(heard.status().ok()) << heard.status();
  EXPECT_EQ(context.rates->CheckPaid().code(), absl::StatusCode::kResourceExhausted);
}

TEST_F(ReferenceStateBuilderTest, AtTheEndOfTheServerNobodyWaits) {
  Insert(0, 2000);
  Heard heard;
  EXPECT_FALSE(states_->WhenReady({}, "c", 1, heard.Ready()));
  states_.reset();
  ASSERT_TRUE(heard.HasHeard());
  EXPECT_EQ(heard.status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace c3po
