// Work in pieces: what comes of it is bitwise what comes of it at once, and it takes no more memory than was estimated.

#include <gtest/gtest.h>

#include <random>

#include "server/compute/cpu/memory.h"
#include "server/model/objective_memory.h"
#include "tests/server/model/neighbor_scenario.h"

namespace c3po {
namespace {

const char* const kFamilies[] = {"olmoe_tiny",    "mixtral_tiny",          "qwen2_moe_tiny",  "qwen3_moe_tiny",
                                 "deepseek_tiny", "deepseek_v2_lite_tiny", "granite_moe_tiny"};

class PiecewiseWorkTest : public testing::TestWithParam<const char*> {};

TEST_P(PiecewiseWorkTest, PiecesGiveWhatAllAtOnceGives) {
  const std::unique_ptr<MoeModel> whole = LoadTiny(GetParam()), parts = LoadTiny(GetParam());
  const Scenario scenario{GetParam(), ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {1, 2, 3}, false, 2};
  std::mt19937 rng(7);
  const ObjectiveSpec expected_spec = MakeSpec(rng, *whole, scenario);
  ObjectiveSpec spec = expected_spec;
  spec.states.clear();
  int pieces = 0;
  for (const NeighborCase& neighbor : spec.cases) {
    auto preparation = parts->NewPreparation(neighbor, {1, 2});
    ASSERT_TRUE(preparation.ok()) << preparation.status();
    while (!*(*preparation)->Advance(1)) {
      ++pieces;
      // Another's pass between two pieces changes nothing.
      ASSERT_TRUE(RunSegments(*parts, {PromptSegment({{0, 3}}, {1, 2, 3})}).ok());
    }
    EXPECT_GT((*preparation)->spent(), 0);
    spec.states.push_back((*preparation)->state());
  }
  EXPECT_GE(pieces, 2 * (parts->shape().layers - 1));
  const auto expected_objective = *whole->NewObjective(expected_spec), objective = *parts->NewObjective(spec);
  const RoutingOverride routing = MakeRouting(rng, *whole, scenario);
  for (const bool want_gradient : {false, true}) {
    const auto expected = whole->EvaluateTogether({{expected_objective.get(), routing, want_gradient}});
    const auto run = parts->NewEvaluationRun({{objective.get(), routing, want_gradient}});
    pieces = 1;
    while (!*run->Advance(1)) {
      ++pieces;
      ASSERT_TRUE(RunSegments(*parts, {PromptSegment({{0, 3}}, {1, 2, 3})}).ok());
    }
    const int layers = parts->shape().layers - parts->config().moe_layers[1];
    EXPECT_EQ(pieces, layers * (want_gradient ? 2 : 1) + 1);
    const int64_t up = layers * objective->rows();
    EXPECT_EQ(run->spent(), up * (want_gradient ? 3 : 1) + objective->rows() * parts->head_layers());
    const auto results = run->TakeResults();
    ASSERT_TRUE(results[0].ok() && expected[0].ok()) << results[0].status();
    EXPECT_EQ(results[0]->loss, expected[0]->loss);
    EXPECT_EQ(results[0]->gradient.weights, expected[0]->gradient.weights);
  }
}

// A trust region's pass of the model alone is in pieces, too, before the first evaluation's own.
TEST_P(PiecewiseWorkTest, TheModelAloneIsComputedInPiecesBeforeTheFirstEvaluation) {
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  Scenario scenario{GetParam(), ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {1, 2, 3}};
  scenario.trust = 2;
  std::mt19937 rng(5);
  const ObjectiveSpec spec = MakeSpec(rng, *model, scenario);
  const auto whole = *model->NewObjective(spec), parts = *model->NewObjective(spec);
  const RoutingOverride routing = MakeRouting(rng, *model, scenario);
  const auto expected = model->EvaluateTogether({{whole.get(), routing, true}});
  ASSERT_TRUE(expected[0].ok()) << expected[0].status();
  const int layers = model->shape().layers - model->config().moe_layers[1];
  for (const bool lacks_base : {true, false}) {
    const auto run = model->NewEvaluationRun({{parts.get(), routing, true}});
    int pieces = 1;
    while (!*run->Advance(1)) ++pieces;
    EXPECT_EQ(pieces, 2 * layers + 1 + (lacks_base ? layers + 1 : 0));
    const int64_t up = layers * parts->rows(), head = parts->rows() * model->head_layers();
    EXPECT_EQ(run->spent(), 3 * up + head + (lacks_base ? up + head : 0));
    const auto results = run->TakeResults();
    ASSERT_TRUE(results[0].ok()) << results[0].status();
    EXPECT_EQ(results[0]->loss, expected[0]->loss);
    EXPECT_EQ(results[0]->gradient.weights, expected[0]->gradient.weights);
  }
}

// What the objective of `spec` is estimated to take, and what it did take at most; states are made here.
void MeasureObjective(MoeModel& model, ObjectiveSpec spec, int positions, int64_t* estimate, int64_t* most) {
  *estimate = model.ObjectiveBytes(spec, positions);
  const int64_t before = cpu::HeldMemory::now();
  cpu::HeldMemory::Restart();
  {
    auto preparations = model.NewPreparations(spec.cases, {spec.critical_layers.front(), positions});
    ASSERT_TRUE(preparations.ok()) << preparations.status();
    for (const auto& one : *preparations) {
      const auto whole = one->Advance(PiecewiseWork::kToTheEnd);
      ASSERT_TRUE(whole.ok()) << whole.status();
      spec.states.push_back(one->state());
    }
  }
  auto objective = model.NewObjective(spec);
  ASSERT_TRUE(objective.ok()) << objective.status();
  RoutingOverride routing{RoutingOverride::Kind::kLogitShift, spec.critical_layers,
                          Pathway(static_cast<int>(spec.critical_layers.size()), model.shape().experts)};
  for (int step = 0; step < 2; ++step) {
    const auto result = model.EvaluateTogether({{objective->get(), routing, true}});
    ASSERT_TRUE(result[0].ok()) << result[0].status();
  }
  *most = cpu::HeldMemory::most() - before;
}

TEST_P(PiecewiseWorkTest, TakesNoMoreMemoryThanWasEstimated) {
  for (uint32_t seed = 1; seed <= 12; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    const char* const kv = seed % 2 == 0 ? "float32" : "bfloat16";
    const std::unique_ptr<MoeModel> model = LoadTiny(GetParam(), "float32", "cpu", "float32", kv);
    const int vocabulary = model->shape().vocabulary_size, window = model->shape().context_window;
    ObjectiveSpec spec;
    spec.critical_layers = seed % 2 == 0 ? std::vector<int>{2, 3} : std::vector<int>{1, 2, 3};
    spec.rule = ApplicationRule::kRouterShift;
    spec.loss = seed % 3 == 0 ? SurrogateLoss::kAnswer : SurrogateLoss::kChoices;
    if (seed % 4 == 0) spec.remembered_bytes_max = 0;
    if (seed % 5 == 0) spec.loss = SurrogateLoss::kPairs;
    if (seed % 2 == 0) spec.trust = 1;
    const int positions = 1 + static_cast<int>(rng() % (window / 2));
    for (uint32_t i = 0; i < 1 + rng() % 6; ++i) {
      NeighborCase neighbor{std::string(1, static_cast<char>('a' + i)),
                            RandomTokens(rng, 1 + int(rng() % (window / 2)), vocabulary),
                            {},
                            0,
                            1};
      for (uint32_t c = 0; c < 1 + rng() % 4; ++c)
        neighbor.continuations.push_back(RandomTokens(rng, 1 + static_cast<int>(rng() % (window / 2)), vocabulary));
      spec.cases.push_back(std::move(neighbor));
    }
    int64_t estimate = 0, most = 0;
    ASSERT_NO_FATAL_FAILURE(MeasureObjective(*model, spec, positions, &estimate, &most));
    EXPECT_LE(most, estimate);
    EXPECT_GT(3 * most, estimate) << "so much is never taken";
  }
}

// Objectives read prompts where their states hold them, each as long as it is: no copy is counted.
TEST_P(PiecewiseWorkTest, CountsAPromptAsLongAsItIs) {
  std::mt19937 rng(1);
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  const int vocabulary = model->shape().vocabulary_size, window = model->shape().context_window;
  ObjectiveSpec spec;
  spec.critical_layers = {1, 2, 3};
  spec.rule = ApplicationRule::kRouterShift;
  spec.loss = SurrogateLoss::kAnswer;
  spec.remembered_bytes_max = 0;
  for (int i = 0; i < 24; ++i) {
    const int length = i == 0 ? window - 2 : 2;
    spec.cases.push_back({std::to_string(i), RandomTokens(rng, length, vocabulary), {{1}}, 0, 1});
  }
  int64_t estimate = 0, most = 0;
  ASSERT_NO_FATAL_FAILURE(MeasureObjective(*model, spec, 1, &estimate, &most));
  RecordProperty("estimate", std::to_string(estimate));
  RecordProperty("most", std::to_string(most));
  EXPECT_LE(most, estimate);
  EXPECT_GT(2 * most, estimate) << "so much is never taken";
}

INSTANTIATE_TEST_SUITE_P(Families, PiecewiseWorkTest, testing::ValuesIn(kFamilies));

}  // namespace
}  // namespace c3po
