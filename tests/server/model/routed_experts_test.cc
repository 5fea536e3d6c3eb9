// The experts that tokens were given, and numbers of experts other than the model's own: on the CPU and on the other
// backend, against the slow oracle; and what the scheduler tells of a whole sequence.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "server/model/config/expert_choice.h"
#include "server/scheduler/continuous_batcher.h"
#include "tests/server/model/other_backend.h"
#include "tests/server/model/reference_model.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {
namespace {

const std::vector<int32_t> kTokens = {5, 17, 99, 3, 3, 42, 200, 7, 11, 64};

// Weights by expert [E] of one token and layer.
std::vector<float> Spread(const RoutedExperts& routes, int token, int layer, int experts) {
  std::vector<float> weights(static_cast<size_t>(experts));
  const size_t first = (static_cast<size_t>(token) * routes.layers + layer) * routes.experts;
  for (size_t j = first; j < first + routes.experts; ++j) weights.at(routes.ids.at(j)) = routes.weights.at(j);
  return weights;
}

class RoutedExpertsOfModels : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    cpu_ = LoadTiny(GetParam());
    other_ = MoeModel::OnBackend(cpu_->config(), OtherBackend(GetParam(), cpu_->config()), int64_t{1} << 20);
    ASSERT_TRUE(other_->AllocateKvCache(SlotsOf(256)).ok());
  }
  static OwnedSegment Wanted(std::vector<int32_t> tokens, int64_t slot = 0, int experts = 0) {
    const auto count = static_cast<int64_t>(tokens.size());
    OwnedSegment segment = PromptSegment({{slot, count + 4}}, std::move(tokens));
    segment.want_routes = true;
    segment.experts_per_token = experts;
    return segment;
  }

  std::unique_ptr<MoeModel> cpu_, other_;
};

// Of every number of experts that a model allows; the backend of a GPU allows the model's own at most.
TEST_P(RoutedExpertsOfModels, AndTheirLogitsAreThoseOfTheOracleForEveryNumberOfExperts) {
  int largest = 0;
  for (int k = 1; k <= SelectableExperts(cpu_->config()); ++k) {
    ModelConfig config = cpu_->config();
    config.experts_per_token = k;
    ReferenceModel oracle(config, TinyWeights(GetParam(), cpu_->config()));
    std::vector<at::Tensor> expected;
    oracle.on_weights = [&](const at::Tensor& weights) { expected.push_back(weights.to(at::kFloat).contiguous()); };
    const at::Tensor logprobs = oracle.LogProbabilities(kTokens, std::nullopt).to(at::kFloat).contiguous();
    if (oracle.smallest_margin() < 1e-5) continue;  // Two correct models may choose differently.
    for (MoeModel* model : {cpu_.get(), other_.get()}) {
      if (k > model->shape().experts_per_token_max) continue;
      SCOPED_TRACE(testing::Message() << k << " experts, " << (model == cpu_.get() ? "cpu" : "other"));
      largest = std::max(largest, k);
      const auto out = RunSegments(*model, {Wanted(kTokens, 0, k)});
      ASSERT_TRUE(out.ok()) << out.status();
      const RoutedExperts& routes = out->at(0).routes;
      ASSERT_EQ(routes.first_position, 0);
      ASSERT_EQ(routes.layers, static_cast<int>(expected.size()));
      ASSERT_EQ(routes.experts, k);
      ASSERT_EQ(routes.tokens(), static_cast<int>(kTokens.size()));
      for (int layer = 0; layer < routes.layers; ++layer) {
        for (int t = 0; t < routes.tokens(); ++t) {
          const auto begin = routes.weights.begin() + (static_cast<std::ptrdiff_t>(t) * routes.layers + layer) * k;
          EXPECT_TRUE(std::is_sorted(begin, begin + k, std::greater<>())) << layer << " " << t;
          const std::vector<float> ours = Spread(routes, t, layer, config.experts);
          for (int e = 0; e < config.experts; ++e) {
            ASSERT_NEAR(ours[e], expected[layer].const_data_ptr<float>()[t * config.experts + e], 2e-5)
                << "layer " << layer << " token " << t << " expert " << e;
          }
        }
      }
      const std::vector<float>& logits = out->at(0).readout.logits;
      const float* const last = logprobs.const_data_ptr<float>() + (kTokens.size() - 1) * logits.size();
      const float shift = last[0] - logits[0];
      for (size_t v = 0; v < logits.size(); ++v) ASSERT_NEAR(logits[v] + shift, last[v], 2e-4 * c3po::Spread(logits));
    }
  }
  EXPECT_GE(largest, std::min(SelectableExperts(cpu_->config()), cpu_->shape().experts_per_token))
      << "every number was left out";
}

// Numbers of experts are a property of rows: those of a batch do not touch each other.
TEST_P(RoutedExpertsOfModels, OfABatchOfDifferentNumbersAreThoseOfEachAlone) {
  for (MoeModel* model : {cpu_.get(), other_.get()}) {
    const int own = model->shape().experts_per_token, most = model->shape().experts_per_token_max;
    std::vector<OwnedSegment> segments = {Wanted(kTokens, 0, 1), Wanted(kTokens, 32, 0), Wanted({9, 8, 7}, 64, most),
                                          Wanted(kTokens, 96, std::max(1, own - 1)), Wanted({5}, 128, own)};
    segments[1].want_routes = false;
    const auto together = *RunSegments(*model, segments);
    ASSERT_TRUE(together[1].routes.empty());
    for (size_t i = 0; i < segments.size(); ++i) {
      SCOPED_TRACE(testing::Message() << "segment " << i << (model == cpu_.get() ? " cpu" : " other"));
      const auto alone = *RunSegments(*model, {segments[i]});
      EXPECT_EQ(together[i].routes.ids, alone[0].routes.ids);
      const std::vector<float>&ours = together[i].readout.logits, &theirs = alone[0].readout.logits;
      if (model->shape().batch_invariant) {
        EXPECT_EQ(ours, theirs);
        EXPECT_EQ(together[i].routes.weights, alone[0].routes.weights);
      } else {
        for (size_t v = 0; v < ours.size(); ++v) ASSERT_NEAR(ours[v], theirs[v], 1e-4 * (1 + c3po::Spread(ours)));
      }
    }
    // A token at a time, as answers are generated.
    std::vector<int> ids;
    for (size_t t = 0; t < kTokens.size(); ++t) {
      OwnedSegment one = PromptSegment({{160, 16}}, {kTokens[t]}, static_cast<int>(t));
      one.want_routes = true;
      one.experts_per_token = 1;
      const auto out = *RunSegments(*model, {one});
      EXPECT_EQ(out[0].routes.first_position, static_cast<int>(t));
      ids.insert(ids.end(), out[0].routes.ids.begin(), out[0].routes.ids.end());
    }
    EXPECT_EQ(ids, std::vector<int>(together[0].routes.ids.begin(), together[0].routes.ids.end()));
  }
}

// What a pathway says is what is told: its largest entries, as the model normalizes and scales them.
TEST_P(RoutedExpertsOfModels, UnderAnOverrideAreThePathways) {
  const ModelConfig& config = cpu_->config();
  auto routing = std::make_shared<RoutingOverride>();
  routing->layers = {1, 2};
  routing->values = Pathway(2, config.experts);
  for (int l = 0; l < 2; ++l) {
    float sum = 0;
    for (int e = 0; e < config.experts; ++e)
      sum += routing->values.Row(l)[e] = static_cast<float>(1 + (e * 7 + l) % 13);
    for (float& w : routing->values.Row(l)) w /= sum;
  }
  for (MoeModel* model : {cpu_.get(), other_.get()}) {
    OwnedSegment segment = Wanted(kTokens);
    const RoutedExperts plain = (*RunSegments(*model, {segment}))[0].routes;
    segment.routing = routing;
    segment.override_start = 7;
    const RoutedExperts routes = (*RunSegments(*model, {segment}))[0].routes;
    std::vector<int64_t> ids(static_cast<size_t>(config.experts_per_token));
    std::vector<float> weights(static_cast<size_t>(config.experts));
    float total = 0;
    for (int layer : {1, 2}) {
      ChooseExperts(config, config.experts_per_token, routing->values.Row(layer - 1).data(), ids.data(), weights.data(),
                    config.norm_topk_prob ? &total : nullptr);
      for (int t = 0; t < routes.tokens(); ++t) {
        const std::vector<float> ours = Spread(routes, t, layer, config.experts);
        if (t >= 7) {
          EXPECT_EQ(ours, weights) << "layer " << layer << " token " << t;
          continue;
        }
        const std::vector<float> before = Spread(plain, t, layer, config.experts);
        for (int e = 0; e < config.experts; ++e) EXPECT_NEAR(ours[e], before[e], 1e-5) << layer << " " << t << " " << e;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, RoutedExpertsOfModels,
                         testing::Values("olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny",
                                         "qwen3_moe_tiny", "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny",
                                         "granite_moe_tiny"));

TEST(RoutedExpertsOfModel, RefusesMoreExpertsThanThereAre) {
  const auto model = LoadTiny("olmoe_tiny");
  OwnedSegment segment = PromptSegment({{0, 4}}, {1, 2});
  segment.experts_per_token = model->shape().experts + 1;
  EXPECT_FALSE(RunSegments(*model, {segment}).ok());
}

// --- Sequences ---

class RouteSink final : public SequenceSink {
 public:
  bool OnToken(const SampledToken& token) override {
    tokens.push_back(token.token_id);
    return true;
  }
  void OnScores(std::vector<ContinuationScore> s) override { scores = std::move(s); }
  void OnRoutes(RoutedExperts told) override {
    EXPECT_TRUE(routes.empty() || told.first_position == routes.end_position()) << told.first_position;
    EXPECT_EQ(std::max<int>(0, told.end_position() - prompt), static_cast<int>(tokens.size())) << "not in time";
    routes.Put(told, 0);
  }
  void OnFinished(const absl::Status& s, FinishReason, const SequenceTimings& t) override {
    status = s;
    cached = t.cached_prompt_tokens;
  }
  int prompt = 0, cached = 0;
  std::vector<int32_t> tokens;
  std::vector<ContinuationScore> scores;
  RoutedExperts routes;
  absl::Status status = absl::UnknownError("did not end");
};

// Finds a pathway at once.
class FoundTask final : public OptimizationTask {
 public:
  FoundTask(std::shared_ptr<const RoutingOverride> routing, bool accepts)
      : routing_(std::move(routing)), accepts_(accepts) {}
  absl::StatusOr<bool> Step(int64_t) override { return true; }
  std::shared_ptr<const RoutingOverride> routing() const override { return routing_; }
  bool AcceptAnswer(double) override { return accepts_; }
  bool AcceptScores(absl::Span<const ContinuationScore>) override { return accepts_; }

 private:
  const std::shared_ptr<const RoutingOverride> routing_;
  const bool accepts_;
};

class RoutesOfSequences : public testing::Test {
 protected:
  RoutesOfSequences() {
    for (int i = 0; i < 70; ++i) prompt_.push_back(3 + i * 5 % 190);
    routing_->layers = {2, 3};
    routing_->values = Pathway(2, model_->shape().experts);
    std::fill(routing_->values.weights.begin(), routing_->values.weights.end(), 0.01f);
    for (int e : {1, 3, 5, 7, 9, 11, 13, 15}) {
      if (e < model_->shape().experts) routing_->values.Row(0)[e] = routing_->values.Row(1)[e] = 0.1f;
    }
    EXPECT_TRUE(model_->AllocateKvCache(KvBlockPool::CacheOf(kCache)).ok());
    limits_.kv_tokens_max = kCache;
    limits_.prefill_tokens_per_step = 48;
    batcher_ = std::make_unique<ContinuousBatcher>(model_.get(), limits_, nullptr);
  }
  SequenceRequest Request(const std::shared_ptr<RouteSink>& sink) {
    SequenceRequest request;
    request.prompt = prompt_;
    request.sampling.max_tokens = 6;
    request.sampling.ignore_eos = true;
    request.want_routes = request.want_prompt_routes = true;
    request.sink = sink;
    sink->prompt = static_cast<int>(prompt_.size());
    return request;
  }
  void Optimize(SequenceRequest& request, bool accepts, ApplicationRule rule, int positions) {
    request.entry_layer = 2;
    request.rule = rule;
    request.prompt_positions = positions;
    request.on_prefilled = [this, accepts](const PromptCapture&,
                                           const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
      return std::make_shared<FoundTask>(routing_, accepts);
    };
  }
  std::shared_ptr<RouteSink> Run(const std::function<void(SequenceRequest&)>& change = nullptr) {
    auto sink = std::make_shared<RouteSink>();
    SequenceRequest request = Request(sink);
    if (change) change(request);
    batcher_->Add(std::move(request));
    while (batcher_->Step()) {
    }
    EXPECT_TRUE(sink->status.ok()) << sink->status;
    return sink;
  }
  // By the model run once over prompt and answer, the pathway at rows [begin, end).
  RoutedExperts ByHand(const std::vector<int32_t>& tokens, int begin = 0, int end = 0, int experts = 0) {
    const auto model = LoadTiny("olmoe_tiny");
    OwnedSegment segment = PromptSegment({{0, static_cast<int64_t>(tokens.size())}}, tokens);
    segment.want_routes = true;
    segment.experts_per_token = experts;
    if (begin < end) {
      segment.routing = routing_;
      segment.override_start = begin;
      segment.override_end = end;
    }
    return (*RunSegments(*model, {segment}))[0].routes;
  }
  // Of all that passes read: but the last token.
  std::vector<int32_t> Read(const RouteSink& sink) const {
    std::vector<int32_t> tokens = prompt_;
    tokens.insert(tokens.end(), sink.tokens.begin(), sink.tokens.end() - 1);
    return tokens;
  }
  static void ExpectSame(const RoutedExperts& ours, const RoutedExperts& expected) {
    EXPECT_EQ(ours.first_position, expected.first_position);
    EXPECT_EQ(ours.tokens(), expected.tokens());
    EXPECT_EQ(ours.ids, expected.ids);
    EXPECT_EQ(ours.weights, expected.weights);
  }

  static constexpr int kCache = 256;
  const std::unique_ptr<MoeModel> model_ = LoadTiny("olmoe_tiny");
  std::vector<int32_t> prompt_;
  std::shared_ptr<RoutingOverride> routing_ = std::make_shared<RoutingOverride>();
  BatcherLimits limits_;
  std::unique_ptr<ContinuousBatcher> batcher_;
};

TEST_F(RoutesOfSequences, AreWholeThoughThePromptIsInTheCache) {
  for (int i = 0; i < 2; ++i) {
    const auto sink = Run();
    EXPECT_EQ(sink->cached, 0);
    ExpectSame(sink->routes, ByHand(Read(*sink)));
  }
  const auto without = Run([](SequenceRequest& request) { request.want_routes = request.want_prompt_routes = false; });
  EXPECT_GT(without->cached, 0);
  EXPECT_TRUE(without->routes.empty());
  const auto follower = Run([](SequenceRequest& request) { request.want_prompt_routes = false; });
  EXPECT_GT(follower->cached, 0);
  EXPECT_EQ(follower->routes.first_position, follower->prompt);
  EXPECT_EQ(follower->routes.tokens(), 5);
}

TEST_F(RoutesOfSequences, AreThoseOfTheRowsThatRanAgainUnderAPathway) {
  const int end = static_cast<int>(prompt_.size());
  for (const int positions : {1, 5}) {
    for (const ApplicationRule rule : {ApplicationRule::kEveryNewToken, ApplicationRule::kLastPromptToken}) {
      const auto sink = Run([&](SequenceRequest& request) { Optimize(request, true, rule, positions); });
      const int until = rule == ApplicationRule::kLastPromptToken ? end : 1000;
      ExpectSame(sink->routes, ByHand(Read(*sink), end - positions, until));
    }
  }
  routing_->kind = RoutingOverride::Kind::kLogitShift;
  const auto shifted =
      Run([&](SequenceRequest& request) { Optimize(request, true, ApplicationRule::kRouterShift, 1); });
  ExpectSame(shifted->routes, ByHand(Read(*shifted), end - 1, 1000));
}

TEST_F(RoutesOfSequences, OfARevertedPathwayAreTheModelsOwn) {
  for (const int positions : {1, 5}) {
    const auto sink =
        Run([&](SequenceRequest& request) { Optimize(request, false, ApplicationRule::kEveryNewToken, positions); });
    ExpectSame(sink->routes, ByHand(Read(*sink)));
  }
}

TEST_F(RoutesOfSequences, OfContinuationsAreTheirTokensButTheLast) {
  for (const bool accepts : {true, false}) {
    const std::vector<std::vector<int32_t>> continuations = {{7}, {7, 8, 9}, {11, 12, 13, 14, 15}};
    const auto sink = Run([&](SequenceRequest& request) {
      Optimize(request, accepts, ApplicationRule::kEveryNewToken, 1);
      request.continuations = continuations;
    });
    ASSERT_EQ(sink->scores.size(), continuations.size());
    EXPECT_TRUE(sink->scores[0].routes.empty());
    const int end = static_cast<int>(prompt_.size());
    for (size_t c = 1; c < continuations.size(); ++c) {
      std::vector<int32_t> tokens = prompt_;
      tokens.insert(tokens.end(), continuations[c].begin(), continuations[c].end() - 1);
      const RoutedExperts whole = accepts ? ByHand(tokens, end - 1, 1000) : ByHand(tokens);
      ExpectSame(sink->routes, whole.Cut(0, end));
      ExpectSame(sink->scores[c].routes, whole.Cut(end, static_cast<int>(continuations[c].size()) - 1));
    }
  }
}

// Keys and values under another number of experts are others.
TEST_F(RoutesOfSequences, OfAnotherNumberOfExpertsShareNoCache) {
  for (const int experts : {0, 2, 0, 2, 3}) {
    const auto sink = Run([&](SequenceRequest& request) {
      request.experts_per_token = experts;
      request.want_prompt_routes = false;
    });
    const RoutedExperts whole = ByHand(Read(*sink), 0, 0, experts);
    ExpectSame(sink->routes, whole.Cut(sink->prompt, 5));
  }
  const auto again = Run([](SequenceRequest& request) {
    request.experts_per_token = 3;
    request.want_prompt_routes = false;
  });
  EXPECT_EQ(again->cached, 64);
  const auto fresh = Run([](SequenceRequest& request) {
    request.experts_per_token = 1;
    request.want_prompt_routes = false;
  });
  EXPECT_EQ(fresh->cached, 0);
}

// Two that do not fit side by side: one gives its blocks back amid its answer, and tells no token twice.
TEST_F(RoutesOfSequences, AreToldOnceThoughBlocksWereGivenBack) {
  std::vector<std::shared_ptr<RouteSink>> sinks;
  for (int i = 0; i < 2; ++i) {
    sinks.push_back(std::make_shared<RouteSink>());
    SequenceRequest request = Request(sinks.back());
    request.sampling.max_tokens = 100;
    batcher_->Add(std::move(request));
  }
  while (batcher_->Step()) {
  }
  EXPECT_GT(batcher_->preemptions(), 0);
  for (const auto& sink : sinks) {
    ASSERT_TRUE(sink->status.ok()) << sink->status;
    ExpectSame(sink->routes, ByHand(Read(*sink)));
  }
}

}  // namespace
}  // namespace c3po
