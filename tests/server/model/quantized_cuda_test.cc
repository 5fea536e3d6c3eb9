// Models of 8 and 4 bits by the GPU's kernels and their plan, on the host model of a GPU: they are held to the CPU's
// quantizer by the numbers that its weights widen to, in double.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "server/compute/cuda/cuda_weights.h"
#include "server/compute/cuda/packed_matrix.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/quantized_tiny.h"
#include "tests/server/model/reference_loss.h"
#include "tests/server/model/reference_model.h"
#include "tests/server/model/tiny_on_cuda.h"

namespace c3po {
namespace {

using host_cuda::HostRuntime;
using host_cuda::RuntimeCounts;

struct Case {
  std::string model, weights;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.model << " " << c.weights; }

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const char* model : {"olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny", "qwen3_moe_tiny",
                            "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny", "granite_moe_tiny"}) {
    for (const char* weights : {"int8", "int4"}) cases.push_back({model, weights});
  }
  return cases;
}

WeightFormat FormatOf(const std::string& weights) {
  return weights == "int8" ? WeightFormat::kInt8 : WeightFormat::kInt4;
}

class QuantizedOnCuda : public testing::TestWithParam<Case> {
 protected:
  std::unique_ptr<MoeModel> OnCuda(const ModelConfig& config, ElementType type) {
    auto backend = TinyOnCuda(GetParam().model, config, runtime_, type, FormatOf(GetParam().weights));
    EXPECT_EQ(backend->info().format, FormatOf(GetParam().weights));
    auto model = MoeModel::OnBackend(config, std::move(backend), int64_t{1} << 20);
    EXPECT_TRUE(model->AllocateKvCache(SlotsOf(256)).ok());
    return model;
  }
  ReferenceModel Widened(const ModelConfig& config) const {
    return ReferenceModel(config, ViewsOf(WidenedTensors(GetParam().model, config, GetParam().weights)));
  }

  HostRuntime runtime_;
};

// By one segment of many rows, then token by token: products of many rows and of few.
std::vector<std::vector<float>> LogitsOf(MoeModel& model, const std::vector<int32_t>& tokens, size_t at_once) {
  std::vector<std::vector<float>> rows;
  for (size_t begin = 0; begin < tokens.size(); begin += at_once) {
    const auto end = std::min(tokens.size(), begin + at_once);
    const auto out = RunSegments(
        model,
        {PromptSegment({{0, 200}},
                       {tokens.begin() + static_cast<ptrdiff_t>(begin), tokens.begin() + static_cast<ptrdiff_t>(end)},
                       static_cast<int>(begin))});
    EXPECT_TRUE(out.ok()) << out.status();
    rows.push_back(out->at(0).readout.logits);
  }
  return rows;
}

// As golden tests allow float32. Then the rounding of rows alone, where no choice of experts is near another: 2^-9 of
// an entry at most, as often independently as there are products on the way.
TEST_P(QuantizedOnCuda, LogitsAreThoseOfTheWidenedWeights) {
  const ModelConfig config = LoadTiny(GetParam().model)->config();
  const std::unique_ptr<MoeModel> exact = OnCuda(config, ElementType::kFloat32);
  const std::unique_ptr<MoeModel> rounded = OnCuda(config, ElementType::kBfloat16);
  const double rounding = 8 * 0x1p-9 * std::sqrt(4 * config.layers + 1);
  int judged = 0;
  for (uint32_t seed = 1; seed <= 8 && judged == 0; ++seed) {
    const ReferenceModel reference = Widened(config);
    std::mt19937 rng(seed);
    const std::vector<int32_t> tokens = RandomTokens(rng, 8, config.vocabulary_size);
    const at::Tensor expected = reference.LogProbabilities(tokens, std::nullopt).contiguous();
    if (reference.smallest_margin() < 2e-5) continue;  // What float32 may take for a tie.
    ++judged;
    const auto expect_near = [&](MoeModel& model, size_t at_once, double tolerance) {
      const auto rows = LogitsOf(model, tokens, at_once);
      for (size_t i = 0; i < rows.size(); ++i) {
        const auto t = static_cast<int64_t>(std::min(tokens.size(), (i + 1) * at_once)) - 1;
        const double* const row = expected.const_data_ptr<double>() + t * expected.size(1);
        double sum = 0, off = 0;
        for (const float logit : rows[i]) sum += std::exp(double{logit});
        for (size_t v = 0; v < rows[i].size(); ++v) {
          off = std::max(off, std::abs(rows[i][v] - std::log(sum) - row[v]));
        }
        const double spread = Spread(std::vector<float>(row, row + expected.size(1)));
        ASSERT_LT(off, tolerance * spread) << "seed " << seed << " row " << t << ", " << at_once << " at once";
      }
    };
    expect_near(*exact, 1, 4e-4);
    expect_near(*exact, 8, 4e-4);
    if (reference.smallest_margin() > rounding) expect_near(*rounded, 1, rounding);
  }
  EXPECT_GT(judged, 0) << "every seed met a tie";
}

// Prompts of more than 64 rows, chunks and single tokens, beside others: the same bits.
TEST_P(QuantizedOnCuda, ARowIsBitwiseTheSameInAnyBatchAndAnyChunks) {
  const ModelConfig config = LoadTiny(GetParam().model)->config();
  const std::unique_ptr<MoeModel> model = OnCuda(config, ElementType::kBfloat16);
  std::mt19937 rng(2);
  const std::vector<int32_t> prompt = RandomTokens(rng, 70, config.vocabulary_size);
  const auto whole = RunSegments(*model, {PromptSegment({{0, 100}}, prompt)});
  ASSERT_TRUE(whole.ok()) << whole.status();
  absl::StatusOr<std::vector<SegmentOutput>> got;
  for (const auto& [begin, end] : {std::pair(0, 3), {3, 68}, {68, 69}, {69, 70}}) {
    got = RunSegments(*model, {PromptSegment({{200, 3}}, RandomTokens(rng, 3, config.vocabulary_size)),
                               PromptSegment({{100, 100}}, {prompt.begin() + begin, prompt.begin() + end}, begin)});
    ASSERT_TRUE(got.ok()) << got.status();
  }
  EXPECT_EQ((*got)[1].readout.logits, (*whole)[0].readout.logits);
}

TEST_P(QuantizedOnCuda, DecodingIsOneCopyOneLaunchAndOneWait) {
  const ModelConfig config = LoadTiny(GetParam().model)->config();
  const std::unique_ptr<MoeModel> model = OnCuda(config, ElementType::kBfloat16);
  std::mt19937 rng(1);
  int length = 0;
  RuntimeCounts one;
  for (int step = 0; step < 5; ++step) {
    const RuntimeCounts before = runtime_.counts();
    ASSERT_TRUE(
        RunSegments(*model, {PromptSegment({{0, 80}}, RandomTokens(rng, 1, config.vocabulary_size), length++)}).ok());
    one = runtime_.counts() - before;
  }
  EXPECT_EQ(one.kernels, 0);
  EXPECT_EQ(one.graph_launches, 1);
  EXPECT_EQ(one.copies_to_device, 1);
  EXPECT_EQ(one.waits, 1);
  EXPECT_EQ(one.allocations, 0);
}

// Loss and gradient of a descent's evaluations: of the first, which runs kernel by kernel, and of one that is replayed.
TEST_P(QuantizedOnCuda, GradientsAreThoseOfAutogradOverTheWidenedWeights) {
  const ModelConfig config = LoadTiny(GetParam().model)->config();
  const std::unique_ptr<MoeModel> model = OnCuda(config, ElementType::kFloat32);
  const ReferenceModel reference = Widened(config);
  const std::vector<Scenario> scenarios = {
      {GetParam().model, ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {1, 2}},
      {GetParam().model, ApplicationRule::kEveryNewToken, SurrogateLoss::kAnswer, {0, 1, 2}, true, 2}};
  for (const Scenario& scenario : scenarios) {
    SCOPED_TRACE(testing::PrintToString(scenario));
    std::mt19937 rng(1);
    const ObjectiveSpec spec = MakeSpec(rng, *model, scenario);
    const auto objective = model->NewObjective(spec);
    ASSERT_TRUE(objective.ok()) << objective.status();
    for (int evaluation = 0; evaluation < 3; ++evaluation) {
      const RoutingOverride routing = MakeRouting(rng, *model, scenario);
      const RuntimeCounts before = runtime_.counts();
      const auto results = model->EvaluateTogether({{objective->get(), routing, true}});
      ASSERT_TRUE(results[0].ok()) << results[0].status();
      EXPECT_EQ((runtime_.counts() - before).graph_launches, evaluation == 0 ? 0 : 1);
      if (evaluation == 1) continue;
      const at::Tensor values = ToTensor(routing.values, at::kDouble).requires_grad_(true);
      const at::Tensor expected = ReferenceLoss(reference, spec.cases, scenario, values);
      expected.backward();
      EXPECT_NEAR(results[0]->loss, expected.item<double>(), 2e-5 * std::abs(expected.item<double>()));
      const at::Tensor oracle = values.grad(), ours = ToTensor(results[0]->gradient, at::kDouble);
      EXPECT_GT(oracle.norm().item<double>(), 1e-6);
      EXPECT_LE((ours - oracle).norm().item<double>(), 1e-4 * oracle.norm().item<double>()) << evaluation;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, QuantizedOnCuda, testing::ValuesIn(AllCases()));

// What the packed matrices take, and what the host told of them.
TEST(QuantizedOnCudaMemory, IsThatOfLevelsAndScales) {
  const ModelConfig config = LoadTiny("olmoe_tiny")->config();
  HostRuntime runtime;
  const auto bytes = [&](WeightFormat format) {
    return TinyOnCuda("olmoe_tiny", config, runtime, ElementType::kBfloat16, format)->info().weight_bytes;
  };
  const auto matrix = [&](int64_t rows, int64_t columns, int bits) {
    return cuda::PackedBytes(rows, columns, 1, bits);
  };
  const int64_t d = config.hidden_size, f = config.intermediate_size, v = config.vocabulary_size;
  const auto of_layers = [&](int attention, int experts) {
    return config.layers *
           (matrix((config.heads + 2 * config.kv_heads) * config.head_dim, d, attention) +
            matrix(d, config.heads * config.head_dim, attention) +
            config.experts * (matrix(2 * cuda::RoundUp(f, cuda::kBandRows), d, experts) + matrix(d, f, experts)));
  };
  ASSERT_FALSE(config.tied_embeddings);
  const int64_t plain = bytes(WeightFormat::kElements) - of_layers(16, 16) - 2 * matrix(v, d, 16);
  EXPECT_EQ(bytes(WeightFormat::kInt8), plain + of_layers(8, 8) + 2 * matrix(v, d, 8));
  EXPECT_EQ(bytes(WeightFormat::kInt4), plain + of_layers(8, 4) + matrix(v, d, 4) + matrix(v, d, 8));
}

}  // namespace
}  // namespace c3po
