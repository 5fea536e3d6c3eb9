#ifndef C3PO_TESTS_SERVER_EMBED_ENGINE_AND_ENCODER_H_
#define C3PO_TESTS_SERVER_EMBED_ENGINE_AND_ENCODER_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/embed/sentence_encoder.h"
#include "server/scheduler/engine.h"
#include "tests/server/embed/split_ids.h"
#include "tests/server/model/tiny_model.h"
#include "tests/server/scheduler/scheduler_fakes.h"

namespace c3po {

// Calls `on_product` before the next product, within Run, and forgets it.
class HookedQueue final : public DeviceQueue {
 public:
  explicit HookedQueue(std::unique_ptr<DeviceQueue> queue) : queue_(std::move(queue)) {}

  void Run(absl::FunctionRef<void()> work) override { queue_->Run(work); }
  at::Tensor FromHost(const at::Tensor& host) override { return queue_->FromHost(host); }
  at::Tensor ToHost(const at::Tensor& x) override { return queue_->ToHost(x); }
  at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) override {
    if (on_product) std::exchange(on_product, nullptr)();
    return queue_->Linear(x, weight, bias);
  }

  std::function<void()> on_product;  // Set while nobody embeds; one thread embeds then.

 private:
  const std::unique_ptr<DeviceQueue> queue_;
};

// What a server has: an engine with a model, and an encoder on a queue of the model's backend.
class EngineAndEncoder {
 public:
  using Rows = std::vector<std::vector<float>>;

  explicit EngineAndEncoder(const std::string& device)
      : model_(LoadTiny("olmoe_tiny", "float32", device)), engine_(model_.get(), Limits(), 64, nullptr) {
    EXPECT_TRUE(model_->AllocateKvCache(KvBlockPool::CacheOf(Limits().kv_tokens_max)).ok());
    auto queue = model_->backend().NewQueue();
    EXPECT_TRUE(queue.ok()) << queue.status();
    queue_ = std::make_shared<HookedQueue>(*std::move(queue));
    auto encoder = SentenceEncoder::Load(std::string(C3PO_TESTDATA_DIR) + "/embed/bert_tiny", queue_, &SplitIds);
    EXPECT_TRUE(encoder.ok()) << encoder.status();
    encoder_ = *std::move(encoder);
  }

  MoeModel& model() { return *model_; }
  HookedQueue& queue() { return *queue_; }

  Rows Embed() {
    auto rows = encoder_->Embed({"1 5 9 2", "1 7 2", "1 9 8 7 6 5 4 3 2"});
    EXPECT_TRUE(rows.ok()) << rows.status();
    return rows.ok() ? *std::move(rows) : Rows();
  }

  // A request that has `unit` done on the engine thread after its prefill, unless null, and then scores a continuation.
  std::shared_ptr<RecordingSink> Submit(std::function<void()> unit) {
    const auto sink = std::make_shared<RecordingSink>();
    SequenceRequest request;
    request.prompt = {5, 17, 99, 3, 3, 42, 200, 7};
    request.continuations = {{11, 64, 90}};
    request.sink = sink;
    if (unit) {
      request.on_prefilled = [unit](const PromptCapture&,
                                    const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
        auto task = std::make_shared<CountdownTask>(1, nullptr);
        task->on_step = unit;
        return task;
      };
    }
    EXPECT_TRUE(engine_.Submit(std::move(request)).ok());
    return sink;
  }

  // The continuation's log-probabilities, once they are there.
  static std::vector<float> Scores(RecordingSink& sink) {
    sink.done.WaitForNotification();
    EXPECT_TRUE(sink.status.ok()) << sink.status;
    EXPECT_EQ(sink.scores.size(), 1u);
    return sink.scores.size() == 1 ? sink.scores[0].token_logprobs : std::vector<float>();
  }
  std::vector<float> Score() { return Scores(*Submit(nullptr)); }

 private:
  static BatcherLimits Limits() {
    BatcherLimits limits;
    limits.kv_tokens_max = 256;
    return limits;
  }

  const std::unique_ptr<MoeModel> model_;
  std::shared_ptr<HookedQueue> queue_;
  std::unique_ptr<SentenceEncoder> encoder_;
  Engine engine_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_EMBED_ENGINE_AND_ENCODER_H_
