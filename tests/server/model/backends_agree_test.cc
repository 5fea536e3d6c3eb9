// Every block on the CPU's kernels and on another backend, on the same rows of every family; and whole models on both.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "server/compute/device.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/other_backend.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {
namespace {

using Values = std::vector<float>;

class BackendsAgree : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    model_ = LoadTiny(GetParam());
    other_ = OtherBackend(GetParam(), model_->config());
    other_->AllocateKvCache(SlotsOf(256));
  }

  const ModelConfig& config() const { return model_->config(); }
  int64_t d() const { return config().hidden_size; }

  Values Random(int64_t count) {
    Values values(static_cast<size_t>(count));
    for (float& value : values) value = normal_(rng_);
    return values;
  }
  Values RandomWeights() {
    Values values = Random(config().experts);
    double sum = 0;
    for (float& value : values) sum += value = std::exp(value);
    for (float& value : values) value = static_cast<float>(value / sum);
    return values;
  }

  static OwnedMatrix Hidden(Backend& backend, const Values& values, int64_t rows) {
    const OwnedMatrix hidden = backend.AllocateHidden(rows);
    backend.Write(values, hidden.view());
    return hidden;
  }
  static OwnedMatrix Floats(Backend& backend, int64_t rows, int64_t columns) {
    const OwnedMatrix matrix = backend.Allocate(ElementType::kFloat32, rows, columns);
    backend.Write(Values(static_cast<size_t>(rows * columns)), matrix.view());
    return matrix;
  }
  static Values Read(Backend& backend, const OwnedMatrix& matrix) {
    Values values(static_cast<size_t>(matrix.view().rows * matrix.view().columns));
    backend.Read(matrix.view(), absl::MakeSpan(values));
    return values;
  }

  // A step of one sequence at its beginning, whose rows are `hidden` and take `routing` in one layer: its feed-forward
  // block, in place.
  void StepFeedForward(Backend& backend, int layer, const std::vector<RoutingRows>& routing, Matrix hidden,
                       Matrix probabilities) const {
    std::vector<PlacedOverride> placed(routing.size());
    std::vector<OverriddenRows> overrides;
    for (size_t i = 0; i < routing.size(); ++i) {
      placed[i] = {routing[i].kind, {layer}, Floats(backend, 1, config().experts)};
      backend.Write(routing[i].values, placed[i].values.view());
      overrides.push_back({routing[i].begin, routing[i].end, &placed[i]});
    }
    const std::vector<int32_t> blocks = BlocksOf({{0, hidden.rows}});
    const SequenceRows rows{0, hidden.rows, 0, {{}, 0, blocks}};
    backend.PlaceStep({{&rows, 1}, {}, overrides, false, {}, {}});
    backend.RunStep({layer, hidden.rows, 0, 0, true}, [&] { backend.FeedForward(layer, hidden, probabilities); });
  }
  static std::shared_ptr<ReferenceStates> NewStates(Backend& backend, int first_layer, int64_t positions) {
    return backend.NewReferenceStates(first_layer, positions, 2, [](int64_t) { return false; });
  }

  // What `compute` gives on each, entry by entry.
  void ExpectAgreement(const std::function<std::vector<Values>(Backend&)>& compute) {
    const std::vector<Values> kernels = compute(model_->backend()), other = compute(*other_);
    ASSERT_EQ(kernels.size(), other.size());
    for (size_t i = 0; i < kernels.size(); ++i) {
      ASSERT_EQ(kernels[i].size(), other[i].size()) << "result " << i;
      double size = 0, difference = 0;
      for (size_t j = 0; j < kernels[i].size(); ++j) {
        size = std::max(size, std::abs(double{kernels[i][j]}));
        difference = std::max(difference, std::abs(double{kernels[i][j]} - other[i][j]));
      }
      EXPECT_LE(difference, 1e-5 * (1 + size)) << "result " << i;
    }
  }

  std::unique_ptr<MoeModel> model_;
  std::unique_ptr<Backend> other_;
  std::mt19937 rng_{1};
  std::normal_distribution<float> normal_;
};

TEST_P(BackendsAgree, OnWhatIsWrittenCopiedAndRead) {
  const Values values = Random(5 * d());
  for (Backend* backend : {&model_->backend(), other_.get()}) {
    const OwnedMatrix from = Hidden(*backend, values, 5), to = Hidden(*backend, Values(size_t(5 * d())), 5);
    backend->Copy(from.view().Rows(1, 3), to.view().Rows(2, 3));
    Values expected(static_cast<size_t>(2 * d()));
    expected.insert(expected.end(), values.begin() + d(), values.begin() + 4 * d());
    EXPECT_EQ(Read(*backend, to), expected);
    EXPECT_EQ(Read(*backend, from.Rows(4, 1)), Values(values.end() - d(), values.end()));
    EXPECT_ANY_THROW(backend->Write(Values(3), from.view()));
    const OwnedMatrix floats = backend->Allocate(ElementType::kFloat32, 5, d());
    backend->Write(values, floats.view());
    Values staging;
    const auto view = backend->HostView(floats.view().Rows(1, 2), staging);
    EXPECT_EQ(Values(view.begin(), view.end()), Values(values.begin() + d(), values.begin() + 3 * d()));
  }
}

TEST_P(BackendsAgree, OnMeansOfRows) {
  const Values values = Random(7 * d());
  ExpectAgreement([&](Backend& backend) {
    const OwnedMatrix hidden = Hidden(backend, values, 7);
    const std::shared_ptr<RowSum> sum = backend.NewRowSum();
    backend.AddRows(hidden.view().Rows(0, 3), *sum);
    backend.AddRows(hidden.view().Rows(3, 4), *sum);
    Values mean(static_cast<size_t>(d()));
    backend.ReadMean(*sum, 7, absl::MakeSpan(mean));
    return std::vector<Values>{mean};
  });
}

TEST_P(BackendsAgree, OnEmbeddings) {
  ExpectAgreement([&](Backend& backend) {
    const OwnedMatrix hidden = backend.AllocateHidden(3);
    backend.Embed({0, config().vocabulary_size - 1, 5}, hidden.view());
    return std::vector<Values>{Read(backend, hidden)};
  });
}

// With a shift in some rows and given weights in others, as requests of one batch have them.
TEST_P(BackendsAgree, OnFeedForwardBlocksAndTheirGradientsUnderEveryOverride) {
  constexpr int64_t kRows = 9;
  const Values x = Random(kRows * d()), dout = Random(kRows * d());
  const Values weights = RandomWeights(), others = RandomWeights(), shift = Random(config().experts);
  using Kind = RoutingOverride::Kind;
  const std::vector<RoutingRows> cases[] = {
      {},
      {{0, 4, Kind::kLogitShift, shift, 1}},
      {{2, 3, Kind::kWeights, weights, 0}, {5, 9, Kind::kWeights, others, 2}},
      {{0, 1, Kind::kWeights, weights, 1}, {1, 4, Kind::kLogitShift, shift, 0}, {6, 8, Kind::kLogitShift, shift, 0}},
      {{3, 7, Kind::kWeights, weights, -1}},
  };
  for (int l = 0; l < config().layers; ++l) {
    for (const std::vector<RoutingRows>& given : cases) {
      const std::vector<RoutingRows> routing = config().IsMoeLayer(l) ? given : std::vector<RoutingRows>();
      ExpectAgreement([&](Backend& backend) {
        std::unique_ptr<Tape> tape;
        const OwnedMatrix hidden = Hidden(backend, x, kRows), sums = Floats(backend, 3, config().experts);
        const OwnedMatrix out = backend.FeedForward(l, routing, hidden, &tape);
        const OwnedMatrix dx =
            backend.FeedForwardBackward(l, routing, *tape, Hidden(backend, dout, kRows), sums.view());
        const OwnedMatrix bare = backend.FeedForward(l, routing, hidden, nullptr);
        const OwnedMatrix probabilities = Floats(backend, kRows, config().experts);
        StepFeedForward(backend, l, routing, hidden.view(), config().IsMoeLayer(l) ? probabilities.view() : Matrix());
        return std::vector<Values>{Read(backend, out),  Read(backend, dx),     Read(backend, sums),
                                   Read(backend, bare), Read(backend, hidden), Read(backend, probabilities)};
      });
    }
  }
}

TEST_P(BackendsAgree, ThatAWeightWhichIsNotANumberIsSelected) {
  Values weights = RandomWeights();
  weights.back() = std::numeric_limits<float>::quiet_NaN();
  const Values x = Random(3 * d());
  const int layer = config().moe_layers.back();
  for (Backend* backend : {&model_->backend(), other_.get()}) {
    const OwnedMatrix hidden = Hidden(*backend, x, 3);
    StepFeedForward(*backend, layer, {{1, 2, RoutingOverride::Kind::kWeights, weights, -1}}, hidden.view(), Matrix());
    const Values out = Read(*backend, hidden);
    EXPECT_TRUE(std::isfinite(out.front()) && std::isfinite(out.back()));
    EXPECT_TRUE(std::isnan(out[static_cast<size_t>(d())]));
  }
}

TEST_P(BackendsAgree, OnExpertsThatAreRememberedAndOnWhatTheBlockGives) {
  constexpr int64_t kRows = 6;
  const Values x = Random(kRows * d()), dout = Random(kRows * d()), weights = RandomWeights();
  const Values shift = Random(config().experts);
  const int layer = config().moe_layers[1];
  using Kind = RoutingOverride::Kind;
  const std::vector<RoutingRows> cases[] = {{{0, 2, Kind::kLogitShift, shift, 1}, {3, 4, Kind::kLogitShift, shift, 1}},
                                            {{1, 6, Kind::kWeights, weights, 0}}};
  for (const int64_t bytes_max : {int64_t{0}, int64_t{1} << 30}) {
    ExpectAgreement([&](Backend& backend) {
      std::vector<Values> results;
      const OwnedMatrix hidden = Hidden(backend, x, kRows);
      const auto experts = backend.Remember(layer, hidden, bytes_max);
      for (const std::vector<RoutingRows>& routing : cases) {
        std::unique_ptr<Tape> tape, whole_tape;
        const OwnedMatrix sums = Floats(backend, 2, config().experts), expected = Floats(backend, 2, config().experts);
        results.push_back(Read(backend, backend.RunRemembered(*experts, routing, &tape)));
        backend.RememberedBackward(*experts, routing, *tape, Hidden(backend, dout, kRows), sums.view());
        results.push_back(Read(backend, sums));
        EXPECT_EQ(Read(backend, backend.RunRemembered(*experts, routing, nullptr)), results[results.size() - 2]);
        const Values whole = Read(backend, backend.FeedForward(layer, routing, hidden, &whole_tape));
        backend.FeedForwardBackward(layer, routing, *whole_tape, Hidden(backend, dout, kRows), expected.view());
        const Values gradient = Read(backend, expected);
        for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(results[results.size() - 2][i], whole[i], 1e-4);
        for (size_t i = 0; i < gradient.size(); ++i) EXPECT_NEAR(results.back()[i], gradient[i], 1e-4);
      }
      return results;
    });
  }
}

// Sequences of one row each, beside one of three; their keys lie in several runs, and one's beginning is another's.
TEST_P(BackendsAgree, OnAttentionToTheCache) {
  const std::vector<int32_t> blocks[] = {BlocksOf({{40, 2}, {3, 1}}), BlocksOf({{10, 1}, {30, 9}}), BlocksOf({{50, 1}}),
                                         BlocksOf({{20, 5}, {0, 2}})};
  const auto kv = [&](int i) { return KvBlocks{{}, 0, blocks[i]}; };
  const std::vector<SequenceRows> before = {{0, 2, 0, kv(0)}, {2, 9, 0, kv(1)}, {11, 3, 0, kv(3)}};
  const std::vector<SequenceRows> now = {
      {0, 1, 2, kv(0)}, {1, 1, 9, kv(1)}, {2, 1, 3, {blocks[3], 3, blocks[2]}}, {3, 3, 3, kv(3)}};
  const Values first = Random(14 * d()), second = Random(6 * d());
  ExpectAgreement([&](Backend& backend) {
    std::vector<Values> results;
    for (const int layer : {0, config().layers - 1}) {
      const OwnedMatrix earlier = Hidden(backend, first, 14), hidden = Hidden(backend, second, 6);
      for (const auto& [sequences, rows] : {std::pair(before, earlier.view()), {now, hidden.view()}}) {
        backend.PlaceStep({sequences, {}, {}, false, {}, {}});
        backend.RunStep({layer, rows.rows, 0, 0, true}, [&, to = rows] { backend.Attention(layer, to); });
      }
      results.push_back(Read(backend, earlier));
      results.push_back(Read(backend, hidden));
    }
    return results;
  });
}

TEST_P(BackendsAgree, OnTreesBelowPromptsAndTheirGradients) {
  const std::vector<int> parents = {-1, 0, 0, 1, 3}, depths = {0, 1, 1, 2, 3}, one_parent = {-1}, one_depth = {0};
  const TreeShape tree{parents, depths, 4}, alone{one_parent, one_depth, 0}, chain{one_parent, one_depth, 2};
  const int first = 1, last = config().layers - 1;
  const Values whole = Random(9 * d()), short_prompt = Random(2 * d()), x = Random(7 * d()), dout = Random(7 * d());
  ExpectAgreement([&](Backend& backend) {
    std::vector<Values> results;
    const auto states = NewStates(backend, first, 4);
    const auto rows = backend.NewPreparationRows({tree});
    const OwnedMatrix climbing = Hidden(backend, whole, 9);
    backend.PreparationAttention(0, *rows, {}, false, climbing.view());
    results.push_back(Read(backend, climbing));
    for (int l = first; l <= last; ++l) {
      backend.PreparationAttention(l, *rows, {states.get()}, l == last, climbing.view().Rows(0, 4));
    }
    results.push_back(Read(backend, climbing));
    const auto short_states = NewStates(backend, first, 2);
    const OwnedMatrix climbing_too = Hidden(backend, short_prompt, 2);
    for (int l = first; l <= last; ++l) {
      backend.PreparationAttention(l, *backend.NewPreparationRows({chain}), {short_states.get()}, false,
                                   climbing_too.view());
    }
    const auto a = backend.PackTrees({{tree, states}, {alone, NewStates(backend, first, 0)}});
    const auto b = backend.PackTrees({{chain, short_states}});
    const std::vector<const PackedTrees*> trees = {a.get(), b.get()};
    for (int l = first; l <= last; ++l) {
      std::unique_ptr<Tape> tape;
      const OwnedMatrix out = backend.TreeAttention(l, trees, Hidden(backend, x, 7), &tape);
      results.push_back(Read(backend, out));
      results.push_back(Read(backend, backend.TreeAttention(l, trees, Hidden(backend, x, 7), nullptr)));
      results.push_back(Read(backend, backend.TreeAttentionBackward(l, trees, *tape, Hidden(backend, dout, 7))));
    }
    return results;
  });
}

TEST_P(BackendsAgree, OnTheHeadsLogitsAndScores) {
  const Values x = Random(4 * d());
  const int64_t vocabulary = config().vocabulary_size;
  ExpectAgreement([&](Backend& backend) {
    const OwnedMatrix logits = Floats(backend, 3, vocabulary), scores = Floats(backend, 2, 2);
    const OwnedMatrix hidden = Hidden(backend, x, 4);
    const std::vector<int32_t> blocks = {0, 1, 2, 3};
    const std::vector<SequenceRows> rows = {{0, 4, 0, {{}, 0, blocks}}};
    const std::vector<int64_t> head_rows = {3, 0, 1};
    backend.PlaceStep({rows, {}, {}, false, head_rows, {}});
    backend.Logits(hidden.view(), logits.view());
    const Values values = Read(backend, logits);
    const auto best = std::max_element(values.begin(), values.begin() + vocabulary) - values.begin();
    const std::vector<int32_t> targets = {static_cast<int32_t>(best), 2};  // The last row has none.
    backend.PlaceStep({rows, {}, {}, false, head_rows, targets});
    backend.ScoreTargets(logits.view(), scores.view());
    return std::vector<Values>{values, Read(backend, scores)};
  });
}

// A matrix without rows is what a block of nothing gets; nothing is read beside it.
TEST_P(BackendsAgree, OnBlocksOfNoRows) {
  ExpectAgreement([&](Backend& backend) {
    std::vector<Values> results;
    for (int l = 0; l < config().layers; ++l) {
      std::unique_ptr<Tape> tape;
      const OwnedMatrix none = backend.AllocateHidden(0), sums = Floats(backend, 1, config().experts);
      const OwnedMatrix out = backend.FeedForward(l, {}, none, &tape);
      EXPECT_EQ(out.rows(), 0);
      EXPECT_EQ(backend.FeedForwardBackward(l, {}, *tape, out, sums.view()).rows(), 0);
      backend.PlaceStep({});
      backend.FeedForward(l, none.view(), Matrix());
      results.push_back(Read(backend, sums));
    }
    const OwnedMatrix logits = backend.Allocate(ElementType::kFloat32, 0, config().vocabulary_size);
    backend.Logits(backend.AllocateHidden(0).view(), logits.view());
    return results;
  });
}

TEST_P(BackendsAgree, ThatRowsOfAnotherPlanAreMisuse) {
  const std::vector<int> parents = {-1, 0}, depths = {0, 1};
  const TreeShape tree{parents, depths, 3};
  const std::vector<int32_t> blocks = BlocksOf({{0, 8}});
  for (const bool kernels : {true, false}) {
    std::unique_ptr<Backend> fresh = OtherBackend(GetParam(), config());
    if (kernels) fresh = *MakeBackend(config(), TinyWeights(GetParam(), config()), WeightPlacement());
    const OwnedMatrix hidden = Hidden(*fresh, Random(4 * d()), 4);
    EXPECT_ANY_THROW({
      fresh->PlaceStep({{{0, 4, 0, {{}, 0, blocks}}}, {}, {}, false, {}, {}});
      fresh->Attention(0, hidden.view());
    }) << "no cache";
    fresh->AllocateKvCache(SlotsOf(8));
    EXPECT_ANY_THROW(fresh->PlaceStep({{{0, 4, 5, {{}, 0, blocks}}}, {}, {}, false, {}, {}})) << "too few blocks";
    fresh->PlaceStep({{{0, 4, 0, {{}, 0, blocks}}}, {}, {}, false, {}, {}});
    EXPECT_NO_THROW(fresh->Attention(0, hidden.view()));
    EXPECT_ANY_THROW(fresh->Attention(0, hidden.view().Rows(0, 3))) << "other rows";
    EXPECT_ANY_THROW(fresh->PackTrees({{tree, NewStates(*fresh, 1, 2)}})) << "a shorter prompt";
    const auto rows = fresh->NewPreparationRows({tree});
    EXPECT_ANY_THROW(fresh->PreparationAttention(0, *rows, {}, false, hidden.view())) << "half a tree";
    const auto other_states = NewStates(*fresh, 1, 2);
    EXPECT_ANY_THROW(fresh->PreparationAttention(0, *rows, {other_states.get()}, false, hidden.view().Rows(0, 3)))
        << "states of another length";
    const auto trees = fresh->PackTrees({{tree, NewStates(*fresh, 1, 3)}});
    const PackedTrees* const packed[] = {trees.get()};
    EXPECT_ANY_THROW(fresh->TreeAttention(0, packed, Hidden(*fresh, Random(2 * d()), 2), nullptr)) << "no states";
  }
}

TEST_P(BackendsAgree, OnWholeModels) {
  const auto other = MoeModel::OnBackend(config(), OtherBackend(GetParam(), config()), int64_t{64} << 20);
  ASSERT_TRUE(other->AllocateKvCache(SlotsOf(256)).ok());
  EXPECT_TRUE(model_->shape().batch_invariant);
  const std::vector<Scenario> scenarios = {
      {GetParam(), ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {1, 2, 3}, false, 2},
      {GetParam(), ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {1, 2, 3}, false, 1, true, 1},
      {GetParam(), ApplicationRule::kEveryNewToken, SurrogateLoss::kPairs, {2, 3}, true}};
  std::vector<Values> logits, targets;
  std::vector<LossAndGradient> evaluations;
  for (MoeModel* model : {model_.get(), other.get()}) {
    std::mt19937 rng(3);
    OwnedSegment prompt = PromptSegment({{0, 12}}, RandomTokens(rng, 12, model->shape().vocabulary_size));
    prompt.targets = RandomTokens(rng, 12, model->shape().vocabulary_size);
    prompt.want_capture = true;
    prompt.entry_layer = 1;
    const auto out = RunSegments(*model, {prompt});
    ASSERT_TRUE(out.ok()) << out.status();
    logits.push_back((*out)[0].readout.logits);
    targets.push_back((*out)[0].target_logprobs);
    for (const Scenario& asked : scenarios) {
      const auto objective = model->NewObjective(MakeSpec(rng, *model, asked));
      ASSERT_TRUE(objective.ok()) << objective.status();
      const auto result = model->EvaluateTogether({{objective->get(), MakeRouting(rng, *model, asked), true}});
      ASSERT_TRUE(result[0].ok()) << result[0].status();
      evaluations.push_back(*result[0]);
    }
  }
  for (size_t i = 0; i < logits[0].size(); ++i) ASSERT_NEAR(logits[0][i], logits[1][i], 1e-4) << i;
  for (size_t i = 0; i < targets[0].size(); ++i) ASSERT_NEAR(targets[0][i], targets[1][i], 1e-4) << i;
  for (size_t asked = 0; asked < scenarios.size(); ++asked) {
    const LossAndGradient &own = evaluations[asked], &others = evaluations[scenarios.size() + asked];
    EXPECT_NEAR(own.loss, others.loss, 1e-5);
    for (size_t i = 0; i < own.gradient.weights.size(); ++i) {
      EXPECT_NEAR(own.gradient.weights[i], others.gradient.weights[i], 1e-4) << asked << ", " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, BackendsAgree,
                         testing::Values("olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny",
                                         "qwen3_moe_tiny", "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny",
                                         "granite_moe_tiny"));

}  // namespace
}  // namespace c3po
