// A request with method none goes through the scheduler without a trace of C3PO: its numbers are bitwise those of the
// model run by hand.

#include <gtest/gtest.h>

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
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnFinished(const absl::Status& s, FinishReason, const SequenceTimings&) override { status = s; }
  std::vector<SampledToken> tokens;
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

}  // namespace
}  // namespace c3po
