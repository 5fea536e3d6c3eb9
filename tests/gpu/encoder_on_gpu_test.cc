// Engine and encoder on one GPU, on a stream each. A host function holds the one's stream until the other is done: on
// one stream, or where either waits for the whole device, that never comes, and the test's time limit ends it.

#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>

#include <optional>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "server/compute/aten/aten_queue.h"
#include "server/compute/aten/torch_device.h"
#include "server/compute/device.h"
#include "tests/server/embed/engine_and_encoder.h"

namespace c3po {
namespace {

// What holds a stream, and is told when to let go.
struct Hold {
  absl::Notification reached, let_go;
};

// All later work on this thread's current stream waits for `hold`, and so does whoever waits for that work.
void HoldCurrentStream(at::Device device, Hold& hold) {
  // libcudart is there once OpenDevice has opened libtorch's CUDA library; this program is linked with neither.
  using LaunchHostFunction = int (*)(void* stream, void (*function)(void*), void* argument);
  static const auto launch = reinterpret_cast<LaunchHostFunction>(dlsym(RTLD_DEFAULT, "cudaLaunchHostFunc"));
  ASSERT_NE(launch, nullptr) << "no cudaLaunchHostFunc in libtorch's CUDA libraries";
  const c10::impl::VirtualGuardImpl cuda(device.type());
  const auto wait = [](void* argument) {
    auto* const held = static_cast<Hold*>(argument);
    held->reached.Notify();
    held->let_go.WaitForNotification();
  };
  ASSERT_EQ(launch(cuda.getStreamNativeHandle(cuda.getStream(device)), wait, &hold), 0);
}

class EncoderOnGpu : public testing::Test {
 protected:
  void SetUp() override {
    const auto device = aten::OpenDevice("cuda");
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    device_ = *device;
    both_.emplace("cuda");
    // Alone, and once before, so that kernels are loaded and memory is there: both may wait for the whole device.
    for (int i = 0; i < 2; ++i) rows_ = both_->Embed();
    for (int i = 0; i < 2; ++i) scores_ = both_->Score();
  }

  void ExpectRows(const EngineAndEncoder::Rows& rows) const {
    ASSERT_EQ(rows.size(), rows_.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      ASSERT_EQ(rows[i].size(), rows_[i].size());
      for (size_t j = 0; j < rows[i].size(); ++j) EXPECT_NEAR(rows[i][j], rows_[i][j], 1e-5) << i << ", " << j;
    }
  }
  void ExpectScores(const std::vector<float>& scores) const {
    ASSERT_EQ(scores.size(), scores_.size());
    for (size_t i = 0; i < scores.size(); ++i) EXPECT_NEAR(scores[i], scores_[i], 1e-4) << i;
  }

  at::Device device_ = at::kCPU;
  std::optional<EngineAndEncoder> both_;
  EngineAndEncoder::Rows rows_;
  std::vector<float> scores_;
};

TEST_F(EncoderOnGpu, TheEnginesStreamIsNotOneOfTheQueues) {
  const c10::impl::VirtualGuardImpl cuda(device_.type());
  const auto one = aten::AtenQueue::Create(device_), other = aten::AtenQueue::Create(device_);
  ASSERT_TRUE(one.ok()) << one.status();
  ASSERT_TRUE(other.ok()) << other.status();
  const c10::Stream engine = cuda.getDefaultStream(device_);
  EXPECT_NE((*one)->stream(), engine);
  EXPECT_NE((*one)->stream(), (*other)->stream());
  (*one)->Run([&] { EXPECT_EQ(cuda.getStream(device_), (*one)->stream()); });
  EXPECT_EQ(cuda.getStream(device_), engine);
}

TEST_F(EncoderOnGpu, AnEmbeddingComesWhileAUnitIsOnTheEnginesStream) {
  Hold hold;
  const auto sink = both_->Submit([&] {
    HoldCurrentStream(device_, hold);
    Backend& backend = both_->model().backend();
    std::vector<float> zeros(4);
    const OwnedMatrix matrix = backend.Allocate(ElementType::kFloat32, 1, 4);
    backend.Write(zeros, matrix.view());
    backend.Read(matrix.view(), absl::MakeSpan(zeros));  // The engine thread waits for its stream.
  });
  hold.reached.WaitForNotification();
  ExpectRows(both_->Embed());
  EXPECT_FALSE(sink->done.HasBeenNotified());
  hold.let_go.Notify();
  ExpectScores(EngineAndEncoder::Scores(*sink));
}

TEST_F(EncoderOnGpu, ARequestEndsWhileAnEmbeddingIsOnItsStream) {
  Hold hold;
  absl::Notification warm, hooked;
  EngineAndEncoder::Rows rows;
  std::thread embedding([&] {
    both_->Embed();  // This thread's handles of cuBLAS.
    warm.Notify();
    hooked.WaitForNotification();
    rows = both_->Embed();
  });
  warm.WaitForNotification();
  both_->queue().on_product = [&] { HoldCurrentStream(device_, hold); };
  hooked.Notify();
  hold.reached.WaitForNotification();
  ExpectScores(both_->Score());
  hold.let_go.Notify();
  embedding.join();
  ExpectRows(rows);
}

}  // namespace
}  // namespace c3po
