// A request with method none goes through the scheduler without a trace of C3PO: its numbers are bitwise those of the
// model run by hand.

#include <gtest/gtest.h>

#include <cmath>

#include "server/model/moe_model.h"
#include "server/sampling/sampler.h"
#include "server/scheduler/continuous_batcher.h"
#include "tests/server/owned_segment.h"

namespace c3po {
namespace {

class TokenSink final : public SequenceSink {
 public:
  bool OnToken(const SampledToken& token) override {
    tokens.push_back(token);
    return true;
  }
  void OnPrompt(std::vector<SampledToken> p) override { prompt = std::move(p); }
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnFinished(const absl::Status& s, FinishReason, const SequenceTimings&) override { status = s; }
  std::vector<SampledToken> tokens, prompt;
  absl::Status status;
};

class RevertedTask final : public OptimizationTask {
 public:
  absl::StatusOr<bool> Step(int64_t) override { return true; }
  std::shared_ptr<const RoutingOverride> routing() const override { return nullptr; }
};

// Finds a pathway, and does not accept what the request gives under it.
class RejectedTask final : public OptimizationTask {
 public:
  explicit RejectedTask(int experts) {
    routing_->kind = RoutingOverride::Kind::kLogitShift;
    routing_->layers = {2, 3};
    routing_->values = Pathway(2, experts);
    for (size_t i = 0; i < routing_->values.weights.size(); ++i)
      routing_->values.weights[i] = i % 3 == 0 ? 4.0f : -1.0f;
  }
  absl::StatusOr<bool> Step(int64_t) override { return true; }
  std::shared_ptr<const RoutingOverride> routing() const override { return routing_; }
  bool AcceptAnswer(double) override { return false; }

 private:
  const std::shared_ptr<RoutingOverride> routing_ = std::make_shared<RoutingOverride>();
};

TEST(PlainRun, MethodNoneAndARevertedPathwayAreBitwiseTheModelAlone) {
  MoeModelOptions options;
  options.folder = std::string(C3PO_TESTDATA_DIR) + "/model/olmoe_tiny";
  options.dtype = "float32";
  const auto model = *MoeModel::Load(options);
  const std::vector<int32_t> prompt = {81, 117, 101, 115, 116, 105, 111, 110};
  SamplingParams sampling;
  sampling.max_tokens = 20;
  sampling.logprobs = 2;
  sampling.ignore_eos = true;

  std::vector<SampledToken> expected;
  ASSERT_TRUE(model->AllocateKvCache(SlotsOf(64)).ok());
  std::vector<int32_t> context = prompt, next = prompt;
  while (expected.size() < 20) {
    OwnedSegment segment;
    segment.kv = {{0, 64}};
    segment.start = static_cast<int>(context.size() - next.size());
    segment.tokens = next;
    const auto out = RunSegments(*model, {segment});
    ASSERT_TRUE(out.ok()) << out.status();
    expected.push_back(*Sample(out->at(0).readout.logits, sampling, context, static_cast<int64_t>(expected.size())));
    next = {expected.back().token_id};
    context.push_back(next[0]);
  }

  ASSERT_TRUE(model->AllocateKvCache(KvBlockPool::CacheOf(64)).ok());
  enum class Task { kNone, kReverted, kRejected };
  for (const Task kind : {Task::kNone, Task::kReverted, Task::kRejected}) {
    SCOPED_TRACE(static_cast<int>(kind));
    BatcherLimits limits;
    limits.kv_tokens_max = 64;
    ContinuousBatcher batcher(model.get(), limits, nullptr);
    auto sink = std::make_shared<TokenSink>();
    SequenceRequest request;
    request.prompt = prompt;
    request.sampling = sampling;
    request.sink = sink;
    if (kind != Task::kNone) {
      request.entry_layer = 2;
      request.rule = ApplicationRule::kRouterShift;
      request.on_prefilled = [&](const PromptCapture&,
                                 const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
        if (kind == Task::kReverted) return std::make_shared<RevertedTask>();
        return std::make_shared<RejectedTask>(model->shape().experts);
      };
    }
    batcher.Add(std::move(request));
    while (batcher.Step()) {
    }
    ASSERT_TRUE(sink->status.ok()) << sink->status;
    ASSERT_EQ(sink->tokens.size(), expected.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_EQ(sink->tokens[i].token_id, expected[i].token_id);
      EXPECT_EQ(sink->tokens[i].logprob, expected[i].logprob);  // Bitwise.
      EXPECT_EQ(sink->tokens[i].top_logprobs[1].logprob, expected[i].top_logprobs[1].logprob);
    }
  }
}

// Against the model's logits at every place of the prompt, one pass a place.
TEST(PlainRun, APromptsLogprobsAreThoseOfTheModelsLogits) {
  MoeModelOptions options;
  options.folder = std::string(C3PO_TESTDATA_DIR) + "/model/olmoe_tiny";
  options.dtype = "float32";
  const auto model = *MoeModel::Load(options);
  const std::vector<int32_t> prompt = {81, 117, 101, 115, 116, 105, 111, 110};
  SamplingParams greedy;
  greedy.logprobs = 3;
  ASSERT_TRUE(model->AllocateKvCache(SlotsOf(64)).ok());
  std::vector<SampledToken> likeliest;  // after each beginning of the prompt
  std::vector<float> own;
  for (size_t length = 1; length < prompt.size(); ++length) {
    OwnedSegment segment;
    segment.kv = {{0, 64}};
    segment.tokens.assign(prompt.begin(), prompt.begin() + static_cast<std::ptrdiff_t>(length));
    const auto out = RunSegments(*model, {segment});
    ASSERT_TRUE(out.ok()) << out.status();
    const std::vector<float>& logits = out->at(0).readout.logits;
    likeliest.push_back(*Sample(logits, greedy, segment.tokens, 0));
    double sum = 0;
    for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
    own.push_back(static_cast<float>(logits[static_cast<size_t>(prompt[length])] - std::log(sum)));
  }

  ASSERT_TRUE(model->AllocateKvCache(KvBlockPool::CacheOf(64)).ok());
  for (const int chunk : {256, 3}) {
    BatcherLimits limits;
    limits.kv_tokens_max = 64;
    limits.prefill_tokens_per_step = chunk;
    ContinuousBatcher batcher(model.get(), limits, nullptr);
    auto sink = std::make_shared<TokenSink>();
    SequenceRequest request;
    request.prompt = prompt;
    request.sampling.max_tokens = 1;
    request.sampling.prompt_logprobs = 3;
    request.sink = sink;
    batcher.Add(std::move(request));
    while (batcher.Step()) {
    }
    ASSERT_TRUE(sink->status.ok()) << sink->status;
    ASSERT_EQ(sink->prompt.size(), prompt.size());
    for (size_t i = 1; i < prompt.size(); ++i) {
      EXPECT_EQ(sink->prompt[i].token_id, prompt[i]);
      EXPECT_NEAR(sink->prompt[i].logprob, own[i - 1], 1e-4);
      ASSERT_EQ(sink->prompt[i].top_logprobs.size(), 3u);
      EXPECT_EQ(sink->prompt[i].top_logprobs[0].token_id, likeliest[i - 1].token_id);
      EXPECT_NEAR(sink->prompt[i].top_logprobs[2].logprob, likeliest[i - 1].top_logprobs[2].logprob, 1e-4);
    }
  }
}

}  // namespace
}  // namespace c3po
