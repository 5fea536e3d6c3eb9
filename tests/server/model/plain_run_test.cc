// A request with method none goes through the scheduler without a trace of C3PO: its numbers are bitwise those of the
// model run by hand.

#include <gtest/gtest.h>

#include "server/model/moe_model.h"
#include "server/sampling/sampler.h"
#include "server/scheduler/continuous_batcher.h"

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
  absl::StatusOr<bool> Step() override { return true; }
  std::shared_ptr<const RoutingOverride> routing() const override { return nullptr; }
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
  const auto cache = *model->NewSequence(64);
  std::vector<int32_t> context = prompt, next = prompt;
  while (expected.size() < 20) {
    Segment segment;
    segment.cache = cache.get();
    segment.start = static_cast<int>(context.size() - next.size());
    segment.tokens = next;
    segment.want_logits = true;
    const auto out = model->Forward({segment});
    ASSERT_TRUE(out.ok()) << out.status();
    expected.push_back(*Sample(out->at(0).logits, sampling, context, static_cast<int64_t>(expected.size())));
    next = {expected.back().token_id};
    context.push_back(next[0]);
  }

  for (const bool reverted : {false, true}) {
    SCOPED_TRACE(reverted);
    ContinuousBatcher batcher(model.get(), BatcherLimits(), nullptr);
    auto sink = std::make_shared<TokenSink>();
    SequenceRequest request;
    request.prompt = prompt;
    request.sampling = sampling;
    request.sink = sink;
    if (reverted) {
      request.entry_layer = 2;
      request.on_prefilled = [](const PromptCapture&,
                                absl::Span<const float>) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
        return std::make_shared<RevertedTask>();
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
