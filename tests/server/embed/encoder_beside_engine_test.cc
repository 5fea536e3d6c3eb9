// Engine and encoder compute at once on the CPU: neither waits for the other, and each gives what it gives alone, to
// the bit. tests/gpu/encoder_on_gpu_test.cc is the same on two streams. What waits where it should not hangs, and the
// test's time limit ends it.

#include <optional>
#include <thread>
#include <vector>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/compute/device.h"
#include "tests/server/embed/engine_and_encoder.h"

namespace c3po {
namespace {

constexpr int kThreads = 3;

class EncoderBesideEngine : public testing::Test {
 protected:
  EncoderBesideEngine() {
    SetComputeThreads(kThreads);
    both_.emplace("cpu");
    rows_ = both_->Embed();
    scores_ = both_->Score();
  }

  std::optional<EngineAndEncoder> both_;
  EngineAndEncoder::Rows rows_;  // Of each alone.
  std::vector<float> scores_;
};

TEST_F(EncoderBesideEngine, AnEmbeddingComesWhileAUnitHoldsTheEngineAndAllComputeThreads) {
  absl::BlockingCounter held(kThreads);
  absl::Notification embedded;
  const auto sink = both_->Submit([&] {
    cpu::ThreadPool::Shared().Run(kThreads, [&](int64_t) {
      held.DecrementCount();
      embedded.WaitForNotification();
    });
  });
  held.Wait();
  EXPECT_EQ(both_->Embed(), rows_);
  EXPECT_FALSE(sink->done.HasBeenNotified());
  embedded.Notify();
  EXPECT_EQ(EngineAndEncoder::Scores(*sink), scores_);
}

TEST_F(EncoderBesideEngine, ARequestEndsWhileTheEncoderIsInsideItsQueue) {
  absl::Notification inside, scored;
  both_->queue().on_product = [&] {
    inside.Notify();
    scored.WaitForNotification();
  };
  EngineAndEncoder::Rows rows;
  std::thread embedding([&] { rows = both_->Embed(); });
  inside.WaitForNotification();
  EXPECT_EQ(both_->Score(), scores_);
  scored.Notify();
  embedding.join();
  EXPECT_EQ(rows, rows_);
}

// Products of both contend for the compute threads.
TEST_F(EncoderBesideEngine, BothGiveWhatTheyGiveAloneWhenNobodyHoldsThem) {
  std::vector<std::thread> embeddings;
  for (int caller = 0; caller < 3; ++caller) {
    embeddings.emplace_back([&] {
      for (int i = 0; i < 30; ++i) EXPECT_EQ(both_->Embed(), rows_);
    });
  }
  for (int i = 0; i < 30; ++i) EXPECT_EQ(both_->Score(), scores_);
  for (std::thread& embedding : embeddings) embedding.join();
}

}  // namespace
}  // namespace c3po
