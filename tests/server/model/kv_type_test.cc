// Keys and values in bfloat16: who keeps them so, what of a model's results stays bitwise the same, what rounding
// leaves, the gradient over rounded states, and what is saved.

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>

#include "server/compute/block_pool.h"
#include "server/compute/cpu/reference_states.h"
#include "server/compute/device.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/reference_loss.h"
#include "tests/server/model/tiny_on_aten.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

constexpr ElementType kFloat32 = ElementType::kFloat32, kBfloat16 = ElementType::kBfloat16;

std::unique_ptr<MoeModel> LoadRounded(const std::string& name) {
  return LoadTiny(name, "float32", "cpu", "float32", "bfloat16");
}

std::string KvTypeOf(const std::string& dtype, const std::string& kv) {
  MoeModelOptions options;
  options.folder = TinyFolder("olmoe_tiny");
  options.dtype = dtype;
  options.kv_cache_dtype = kv;
  const auto model = MoeModel::Load(options);
  if (!model.ok()) return std::string(model.status().message());
  EXPECT_EQ((*model)->shape().kv_cache_dtype, (*model)->backend().info().kv == kFloat32 ? "float32" : "bfloat16");
  return (*model)->shape().kv_cache_dtype;
}

TEST(KvType, FollowsTheWeightsUnlessItIsNamed) {
  EXPECT_EQ(KvTypeOf("float32", "auto"), "float32");
  EXPECT_EQ(KvTypeOf("bfloat16", "auto"), "bfloat16");
  EXPECT_EQ(KvTypeOf("float32", "bfloat16"), "bfloat16");
  EXPECT_EQ(KvTypeOf("bfloat16", "float32"), "float32");
  EXPECT_THAT(KvTypeOf("float32", "int8"), HasSubstr("kv-cache-dtype \"int8\" is not one of auto, float32, bfloat16"));
}

std::vector<float> LogitsOf(MoeModel& model, const OwnedSegment& segment) {
  const auto out = RunSegments(model, {segment});
  EXPECT_TRUE(out.ok()) << out.status();
  return out->at(0).readout.logits;
}

class RoundedKv : public testing::TestWithParam<const char*> {
 protected:
  RoundedKv() : model_(LoadRounded(GetParam())), exact_(LoadTiny(GetParam())) {}

  const ModelConfig& config() const { return model_->config(); }
  std::vector<int32_t> Tokens(int count) { return RandomTokens(rng_, count, model_->shape().vocabulary_size); }

  std::mt19937 rng_{11};
  const std::unique_ptr<MoeModel> model_, exact_;
};

// A row reads what is kept, its own chunk's keys and values too: in chunks of any size, between others, anywhere in the
// cache.
TEST_P(RoundedKv, ChunkedBatchedAndScatteredPrefillGivesTheLogitsOfOnePass) {
  const std::vector<int32_t> tokens = Tokens(45);
  const std::vector<float> expected = LogitsOf(*model_, PromptSegment({{0, 45}}, tokens));
  EXPECT_NE(expected, LogitsOf(*exact_, PromptSegment({{0, 45}}, tokens))) << "nothing was rounded";
  const std::vector<KvRun> scattered = {{200, 3}, {100, 1}, {101, 3}, {120, 38}};
  for (const int chunk : {1, 4, 33, 44}) {
    std::vector<float> last;
    for (int begin = 0; begin < 45; begin += chunk) {
      const int end = std::min(45, begin + chunk);
      const auto out =
          RunSegments(*model_, {PromptSegment({{60, 16}}, Tokens(1 + begin % 3)),
                                PromptSegment(scattered, {tokens.begin() + begin, tokens.begin() + end}, begin)});
      ASSERT_TRUE(out.ok()) << out.status();
      last = out->at(1).readout.logits;
    }
    EXPECT_EQ(last, expected) << chunk;
  }
}

TEST_P(RoundedKv, ContinuationsShareAPromptsSlotsSideBySide) {
  const std::vector<int32_t> prompt = Tokens(9);
  const std::vector<std::vector<int32_t>> continuations = {Tokens(3), Tokens(2), Tokens(4)};
  LogitsOf(*model_, PromptSegment({{64, 9}}, prompt));
  std::vector<OwnedSegment> segments;
  for (size_t i = 0; i < continuations.size(); ++i) {
    segments.push_back(PromptSegment({{64, 9}, {100 + 10 * static_cast<int64_t>(i), 4}}, continuations[i], 9));
  }
  const auto out = RunSegments(*model_, segments);
  ASSERT_TRUE(out.ok()) << out.status();
  for (size_t i = 0; i < continuations.size(); ++i) {
    std::vector<int32_t> tokens = prompt;
    tokens.insert(tokens.end(), continuations[i].begin(), continuations[i].end());
    EXPECT_EQ(out->at(i).readout.logits, LogitsOf(*model_, PromptSegment({{0, 16}}, tokens))) << i;
  }
}

// From its capture the last token overwrites its keys and values, which are then those of a pass under the pathway:
// what decoding reads afterwards is the same.
TEST_P(RoundedKv, ATokenThatRunsAgainUnderAPathwayLeavesWhatAPassUnderItLeaves) {
  const std::vector<int32_t> tokens = Tokens(12), next = Tokens(1);
  OwnedSegment prompt = PromptSegment({{0, 16}}, tokens);
  prompt.want_capture = true;
  prompt.entry_layer = 2;
  const auto base = RunSegments(*model_, {prompt});
  ASSERT_TRUE(base.ok()) << base.status();
  OwnedSegment resumed = PromptSegment({{0, 16}}, {tokens.back()}, 11);
  resumed.resume = true;
  resumed.entry_layer = 2;
  resumed.entry = base->at(0).capture.entry;
  EXPECT_EQ(LogitsOf(*model_, resumed), base->at(0).readout.logits);
  const auto routing = std::make_shared<const RoutingOverride>(
      RoutingOverride{RoutingOverride::Kind::kWeights, {2, 3}, RandomPathway(rng_, 2, model_->shape().experts)});
  OwnedSegment whole = PromptSegment({{32, 16}}, tokens);
  resumed.routing = whole.routing = routing;
  resumed.override_start = whole.override_start = 11;
  EXPECT_EQ(LogitsOf(*model_, resumed), LogitsOf(*model_, whole));
  EXPECT_EQ(LogitsOf(*model_, PromptSegment({{0, 16}}, next, 12)),
            LogitsOf(*model_, PromptSegment({{32, 16}}, next, 12)));
}

// Half the bytes for keys and values, and as many for a tree's rows, which are float32.
TEST_P(RoundedKv, TheCacheAndReferencesStatesTakeHalfOfTheBytes) {
  EXPECT_GT(model_->kv_cache_bytes(), 0);
  EXPECT_EQ(2 * model_->kv_cache_bytes(), exact_->kv_cache_bytes());
  EXPECT_EQ(2 * model_->backend().KvCacheBytes({3, 7}), exact_->backend().KvCacheBytes({3, 7}));
  const auto nothing = [](int64_t) { return false; };
  for (MoeModel* model : {model_.get(), exact_.get()}) {
    Backend& backend = model->backend();
    const ElementType kv = backend.info().kv;
    for (const int64_t positions : {0, 1, 8, 41}) {
      for (const int64_t rows : {1, 5}) {
        const int64_t blocks =
            (config().layers - 1) * StateBlocksOfLayer(positions) + StateBlocksOfRows(rows, config(), kFloat32, kv);
        EXPECT_EQ(backend.NewReferenceStates(1, positions, rows, nothing)->bytes(),
                  blocks * StateBlockBytes(config(), kv));
      }
    }
  }
  EXPECT_EQ(2 * StateBlockBytes(config(), kBfloat16), StateBlockBytes(config(), kFloat32));
  const std::vector<int32_t> prompt = Tokens(40);
  const NeighborCase neighbor{"x", prompt, {Tokens(1)}, 0, 1};
  ASSERT_TRUE(model_->PrepareNeighbor(neighbor, {1}).ok() && exact_->PrepareNeighbor(neighbor, {1}).ok());
  EXPECT_EQ(model_->neighbor_cache_bytes(), model_->backend().reference_bytes_in_use());
  // But for a tree's row, which is rounded up to whole blocks.
  EXPECT_LE(model_->neighbor_cache_bytes(),
            exact_->neighbor_cache_bytes() / 2 +
                StateBlocksOfRows(1, config(), kFloat32, kBfloat16) * StateBlockBytes(config(), kBfloat16));
}

// Our kernels and libtorch's, which round the same numbers but for the last bits of float32: now and then one of them
// to another side.
TEST_P(RoundedKv, BlocksAgreeWithLibtorchsAsFarAsRoundingLets) {
  const auto other = TinyOnAten(GetParam(), config(), kBfloat16);
  EXPECT_EQ(other->info().kv, kBfloat16);
  EXPECT_EQ(other->KvCacheBytes({5, 4}), model_->backend().KvCacheBytes({5, 4}));
  other->AllocateKvCache(SlotsOf(256));
  const int64_t d = config().hidden_size;
  std::normal_distribution<float> normal;
  const auto random = [&](int64_t rows) {
    std::vector<float> values(static_cast<size_t>(rows * d));
    for (float& value : values) value = normal(rng_);
    return values;
  };
  const std::vector<float> first = random(14), second = random(6), x = random(4), dout = random(4);
  const std::vector<int32_t> blocks[] = {BlocksOf({{40, 2}, {3, 1}}), BlocksOf({{20, 14}})};
  const std::vector<SequenceRows> before = {{0, 2, 0, {{}, 0, blocks[0]}}, {2, 12, 0, {{}, 0, blocks[1]}}};
  const std::vector<SequenceRows> now = {{0, 1, 2, {{}, 0, blocks[0]}}, {1, 2, 12, {{}, 0, blocks[1]}}};
  const std::vector<int> parents = {-1, 0, 0}, depths = {0, 1, 1}, one_parent = {-1}, one_depth = {0};
  const TreeShape tree{parents, depths, 3}, alone{one_parent, one_depth, 0};
  std::vector<std::vector<float>> results[2];
  for (const bool on_aten : {false, true}) {
    Backend& backend = on_aten ? *other : model_->backend();
    const auto matrix = [&](const std::vector<float>& values) {
      const OwnedMatrix hidden = backend.AllocateHidden(static_cast<int64_t>(values.size()) / d);
      backend.Write(values, hidden.view());
      return hidden;
    };
    const auto keep = [&](const OwnedMatrix& made) {
      results[on_aten].emplace_back(static_cast<size_t>(made.rows() * d));
      backend.Read(made.view(), absl::MakeSpan(results[on_aten].back()));
    };
    const OwnedMatrix earlier = matrix(first), later = matrix({second.begin(), second.begin() + 3 * d});
    for (const auto& [sequences, rows] : {std::pair(before, earlier), {now, later}}) {
      backend.PlaceStep({sequences, {}, {}, false, {}, {}});
      backend.RunStep({1, rows.rows(), 0, 0, true}, [&, to = rows.view()] { backend.Attention(1, to); });
      keep(rows);
    }
    const auto states = backend.NewReferenceStates(1, 3, 3, [](int64_t) { return false; });
    const auto none = backend.NewReferenceStates(1, 0, 1, [](int64_t) { return false; });
    const auto rows = backend.NewPreparationRows({tree});
    const OwnedMatrix climbing = matrix(second);
    for (int l = 1; l < config().layers; ++l) {
      backend.PreparationAttention(l, *rows, {states.get()}, false, climbing.view());
    }
    keep(climbing);
    backend.StoreTree(climbing.view().Rows(3, 3), *states);
    const OwnedMatrix loaded = backend.AllocateHidden(3);
    backend.LoadTree(*states, loaded.view());
    keep(loaded);
    const auto packed = backend.PackTrees({{tree, states}, {alone, none}});
    const PackedTrees* const trees[] = {packed.get()};
    for (int l = 1; l < config().layers; ++l) {
      std::unique_ptr<Tape> tape;
      keep(backend.TreeAttention(l, trees, matrix(x), &tape));
      keep(backend.TreeAttentionBackward(l, trees, *tape, matrix(dout)));
    }
  }
  ASSERT_EQ(results[0].size(), results[1].size());
  for (size_t i = 0; i < results[0].size(); ++i) {
    float size = 0;
    for (const float value : results[0][i]) size = std::max(size, std::abs(value));
    size_t near = 0;
    for (size_t j = 0; j < results[0][i].size(); ++j) {
      const double difference = std::abs(double{results[0][i][j]} - results[1][i][j]);
      ASSERT_LE(difference, 1e-2 * (1 + size)) << "result " << i << ", " << j;
      near += difference <= 1e-5 * (1 + size);
    }
    EXPECT_GT(2 * near, results[0][i].size()) << "result " << i;
  }
}

// What bfloat16 leaves of a number is within 1/512 of it, and less than that of a sum of them; routers choose for
// themselves, so that a row may take another way where two experts are as close.
TEST_P(RoundedKv, LogitsStayWithinWhatRoundingLeavesInMostRows) {
  int near = 0, rows = 0;
  for (int prompt = 0; prompt < 6; ++prompt) {
    const std::vector<int32_t> tokens = Tokens(20);
    for (int t = 0; t < 20; ++t, ++rows) {
      const OwnedSegment segment = PromptSegment({{0, 32}}, {tokens[static_cast<size_t>(t)]}, t);
      const std::vector<float> rounded = LogitsOf(*model_, segment), expected = LogitsOf(*exact_, segment);
      double square = 0;
      for (size_t i = 0; i < expected.size(); ++i) square += std::pow(double{rounded[i]} - expected[i], 2);
      near += std::sqrt(square / static_cast<double>(expected.size())) <= 2e-2 * Spread(expected);
    }
  }
  EXPECT_GT(2 * near, rows);
  RecordProperty("near", near);
}

INSTANTIATE_TEST_SUITE_P(Families, RoundedKv,
                         testing::Values("olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny",
                                         "qwen3_moe_tiny", "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny",
                                         "granite_moe_tiny"));

// --- the gradient over rounded states ---

// What of a neighbor is kept, as tensors.
ReferenceModel::Known KnownOf(MoeModel& model, const MoeNeighborState& state, const std::vector<int>& rows) {
  const ModelConfig& config = model.config();
  const auto& states = static_cast<const cpu::CpuReferenceStates&>(*state.states);
  ReferenceModel::Known known;
  known.first_layer = config.moe_layers[static_cast<size_t>(state.first_layer)];
  const OwnedMatrix hidden = model.backend().AllocateHidden(states.tree_rows());
  model.backend().LoadTree(states, hidden.view());
  std::vector<float> entering(static_cast<size_t>(states.tree_rows() * config.hidden_size));
  model.backend().Read(hidden.view(), absl::MakeSpan(entering));
  const at::Tensor all =
      at::from_blob(entering.data(), {states.tree_rows(), config.hidden_size}, at::kFloat).to(at::kDouble).clone();
  known.rows = all.index_select(0, at::tensor(std::vector<int64_t>(rows.begin(), rows.end()), at::kLong));
  const int64_t positions = states.positions();
  for (int l = known.first_layer; l < config.layers; ++l) {
    for (const bool values : {false, true}) {
      const int64_t dim = values ? config.value_dim : config.head_dim;
      const at::Tensor x = at::empty({positions, config.kv_heads, dim}, at::kDouble);
      for (int64_t p = 0; p < positions; ++p) {
        const auto* block = static_cast<const uint16_t*>(states.Blocks(l)[p / kStateBlockPositions]);
        if (values) block += kStateBlockPositions * config.kv_heads * config.head_dim;
        for (int64_t g = 0; g < config.kv_heads; ++g) {
          for (int64_t i = 0; i < dim; ++i) {
            const uint32_t bits = uint32_t{block[(g * kStateBlockPositions + p % kStateBlockPositions) * dim + i]}
                                  << 16;
            float value;
            std::memcpy(&value, &bits, sizeof value);
            x[p][g][i] = value;
          }
        }
      }
      (values ? known.values : known.keys).push_back(x);
    }
  }
  return known;
}

// The tree's rows of a prompt's last tokens and of a continuation.
std::vector<int> RowsOf(const AnswerTree& tree, absl::Span<const int32_t> continuation) {
  std::vector<int> rows;
  for (int row = 0; row < tree.prompt_rows; ++row) rows.push_back(row);
  for (size_t t = 0; t + 1 < continuation.size(); ++t) {
    for (int row = tree.prompt_rows; row < tree.rows(); ++row) {
      if (tree.parents[row] != rows.back() || tree.tokens[row] != continuation[t]) continue;
      rows.push_back(row);
      break;
    }
  }
  return rows;
}

class RoundedStates : public testing::TestWithParam<Scenario> {};

// Autograd through the layers above, in double, over the very states that are kept.
TEST_P(RoundedStates, LossAndClosedFormGradientEqualAutogradOverThem) {
  const Scenario& scenario = GetParam();
  const std::unique_ptr<MoeModel> model = LoadRounded(scenario.model), exact = LoadTiny(scenario.model);
  ReferenceModel reference(model->config(), TinyWeights(scenario.model, model->config()));
  for (const uint32_t seed : {1u, 2u}) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed), again(seed);
    const ObjectiveSpec spec = MakeSpec(rng, *model, scenario), in_float32 = MakeSpec(again, *exact, scenario);
    const RoutingOverride routing = MakeRouting(rng, *model, scenario);
    std::map<std::vector<int32_t>, ReferenceModel::Known> all;
    for (size_t i = 0; i < spec.cases.size(); ++i) {
      const auto& state = static_cast<const MoeNeighborState&>(*spec.states[i]);
      for (const std::vector<int32_t>& continuation : spec.cases[i].continuations) {
        std::vector<int32_t> tokens = spec.cases[i].prompt;
        tokens.insert(tokens.end(), continuation.begin(), continuation.end() - 1);
        all[tokens] = KnownOf(*model, state, RowsOf(state.tree, continuation));
      }
    }
    reference.known = [&all](const std::vector<int32_t>& tokens) { return std::optional(all.at(tokens)); };
    const auto objective = model->NewObjective(spec), unrounded = exact->NewObjective(in_float32);
    ASSERT_TRUE(objective.ok() && unrounded.ok()) << objective.status();
    Pathway gradient, other;
    const auto loss = (*objective)->Evaluate(routing, &gradient), near = (*unrounded)->Evaluate(routing, &other);
    ASSERT_TRUE(loss.ok() && near.ok()) << loss.status();
    EXPECT_NE(*loss, *near) << "nothing was rounded";

    const at::Tensor values = ToTensor(routing.values, at::kDouble).requires_grad_(true);
    const at::Tensor expected = ReferenceLoss(reference, spec.cases, scenario, values);
    expected.backward();
    EXPECT_NEAR(*loss, expected.item<double>(), 1e-5 * std::abs(expected.item<double>()));
    const at::Tensor ours = at::from_blob(gradient.weights.data(), values.sizes(), at::kFloat).to(at::kDouble);
    const double size = values.grad().norm().item<double>(), error = (ours - values.grad()).norm().item<double>();
    EXPECT_GT(size, 1e-6);
    EXPECT_LE(error, 1e-4 * size);
  }
}

std::vector<Scenario> StateScenarios() {
  std::vector<Scenario> scenarios;
  for (const char* model : {"olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny", "qwen3_moe_tiny",
                            "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny", "granite_moe_tiny"}) {
    scenarios.push_back({model, ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {1, 2, 3}});
    scenarios.push_back({model, ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {1, 2, 3}, false, 2, true, 1});
    scenarios.push_back({model, ApplicationRule::kLastPromptToken, SurrogateLoss::kAnswer, {2, 3}, false, 3});
  }
  return scenarios;
}

INSTANTIATE_TEST_SUITE_P(Scenarios, RoundedStates, testing::ValuesIn(StateScenarios()));

// What a reference keeps is what a request with its prompt would have: a request's capture, where it enters the first
// critical layer, is the tree's first row.
TEST(RoundedStatesOfAPrompt, AreThoseOfARequestWithThatPrompt) {
  for (const char* name : {"olmoe_tiny", "deepseek_v2_tiny", "granite_moe_tiny"}) {
    SCOPED_TRACE(name);
    const std::unique_ptr<MoeModel> model = LoadRounded(name);
    std::mt19937 rng(4);
    const NeighborCase neighbor{"x", RandomTokens(rng, 14, model->shape().vocabulary_size), {{3}}, 0, 1};
    const auto prepared = model->PrepareNeighbor(neighbor, {2});
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    OwnedSegment prompt = PromptSegment({{0, 16}}, neighbor.prompt);
    prompt.want_capture = true;
    prompt.entry_layer = prompt.state_layer = 2;
    const auto out = RunSegments(*model, {prompt});
    ASSERT_TRUE(out.ok()) << out.status();
    const auto& state = static_cast<const MoeNeighborState&>(*prepared->state);
    const at::Tensor row = KnownOf(*model, state, {0}).rows[0];
    const std::vector<float>& captured = out->at(0).capture.state;
    // Not bitwise: a tree's own rows are not rounded, so that gradients are exact.
    for (size_t i = 0; i < captured.size(); ++i) {
      EXPECT_NEAR(row[static_cast<int64_t>(i)].item<double>(), captured[i], 1e-2 * Spread(captured));
    }
  }
}

}  // namespace
}  // namespace c3po
