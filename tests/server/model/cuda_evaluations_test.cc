// Evaluations of objectives as whole passes on the GPU's kernels and their plan, on the host model of a GPU, and the
// passes that prepare neighbors: what they give, and what they ask of the device.

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/model/neighbor_cache.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/tiny_on_cuda.h"

namespace c3po {
namespace {

using host_cuda::HostRuntime;
using host_cuda::RuntimeCounts;

class CudaEvaluationsTest : public testing::Test {
 protected:
  std::unique_ptr<MoeModel> OnCuda(const std::string& name, const ModelConfig& config,
                                   ElementType type = ElementType::kFloat32) {
    auto model = MoeModel::OnBackend(config, TinyOnCuda(name, config, runtime_, type), int64_t{1} << 20);
    EXPECT_TRUE(model->AllocateKvCache(SlotsOf(256)).ok());
    return model;
  }
  // Of prompts that are embedded.
  int64_t passes() const { return runtime_.LaunchesByKernel()["c3po::cuda::EmbeddingArgs"]; }
  void ExpectOneCopyOneLaunchAndOneWait(const Scenario& scenario, bool want_gradient);

  HostRuntime runtime_;
};
class CudaEvaluations : public CudaEvaluationsTest, public testing::WithParamInterface<const char*> {};
class CudaPreparations : public CudaEvaluations {};

// What the evaluations of a model's objectives are, in pieces: the same blocks without a record of them.
std::vector<LossAndGradient> InPieces(MoeModel& model, absl::Span<const Evaluation> evaluations) {
  const auto run = model.NewEvaluationRun({evaluations.begin(), evaluations.end()});
  while (!*run->Advance(1)) {
  }
  std::vector<LossAndGradient> results;
  for (absl::StatusOr<LossAndGradient>& result : run->TakeResults()) {
    EXPECT_TRUE(result.ok()) << result.status();
    results.push_back(result.ok() ? *std::move(result) : LossAndGradient());
  }
  return results;
}

// The evaluations of a descent: the first runs kernel by kernel, the second is recorded. From then on what goes in is
// one copy of the values, the rest one launch, and one copy out that is waited for; nothing is allocated, no copy is
// pageable. Loss and gradient are bitwise those of the pieces, and near those of the CPU.
void CudaEvaluationsTest::ExpectOneCopyOneLaunchAndOneWait(const Scenario& scenario, bool want_gradient) {
  constexpr int kLast = 2;
  const std::unique_ptr<MoeModel> cpu = LoadTiny(scenario.model);
  const std::unique_ptr<MoeModel> gpu = OnCuda(scenario.model, cpu->config());
  std::mt19937 rng(4), rng_of_cpu(4);
  const auto objective = *gpu->NewObjective(MakeSpec(rng, *gpu, scenario));
  const auto expected = *cpu->NewObjective(MakeSpec(rng_of_cpu, *cpu, scenario));
  Evaluation asked{objective.get(), {}, want_gradient};
  std::vector<absl::StatusOr<LossAndGradient>> results;
  int64_t kernels = 0;
  for (int step = 0; step <= kLast; ++step) {
    SCOPED_TRACE(testing::Message() << "evaluation " << step);
    asked.routing = MakeRouting(rng, *gpu, scenario);
    const RuntimeCounts before = runtime_.counts();
    results = gpu->EvaluateTogether({&asked, 1});
    const RuntimeCounts one = runtime_.counts() - before;
    ASSERT_TRUE(results[0].ok()) << results[0].status();
    EXPECT_EQ(one.copies_to_host, step == 0 && scenario.trust > 0 ? 2 : 1) << "the model alone comes before the first";
    EXPECT_EQ(one.pageable_copies, 0);
    EXPECT_EQ(one.recordings, step == 1 ? 1 : 0);
    if (step == 0) {
      kernels = one.kernels;
      EXPECT_EQ(one.graph_launches, 0);
      continue;
    }
    EXPECT_EQ(one.kernels, 0);
    if (step == 1 && scenario.trust > 0) kernels = one.graph_kernels;  // Those of the first were of two passes.
    EXPECT_EQ(one.graph_kernels, kernels);
    EXPECT_EQ(one.graph_launches, 1);
    EXPECT_EQ(one.copies_to_device, 1);
    EXPECT_EQ(one.bytes_to_device, static_cast<int64_t>(asked.routing.values.weights.size() * sizeof(float)));
    EXPECT_EQ(one.waits, 1);
    EXPECT_EQ(one.allocations, 0);
    EXPECT_EQ(one.device_waits, 0);
  }
  const RuntimeCounts before = runtime_.counts();
  const LossAndGradient in_pieces = InPieces(*gpu, {&asked, 1})[0];
  const RuntimeCounts of_pieces = runtime_.counts() - before;
  EXPECT_EQ(of_pieces.kernels, kernels - (want_gradient ? 1 : 0)) << "all but the loss is the same work";
  RecordProperty("kernels", std::to_string(of_pieces.kernels));
  RecordProperty("in_pieces", absl::StrCat(of_pieces.copies_to_device, " copies in, ", of_pieces.copies_to_host,
                                           " out, ", of_pieces.waits, " waits"));
  EXPECT_EQ(results[0]->loss, in_pieces.loss);
  EXPECT_EQ(results[0]->gradient.weights, in_pieces.gradient.weights);
  rng.seed(4);  // The same objective, of which no pass was whole.
  const auto only_pieces = *gpu->NewObjective(MakeSpec(rng, *gpu, scenario));
  const Evaluation asked_of_it{only_pieces.get(), asked.routing, want_gradient};
  const LossAndGradient never_whole = InPieces(*gpu, {&asked_of_it, 1})[0];
  EXPECT_EQ(results[0]->loss, never_whole.loss);
  EXPECT_EQ(results[0]->gradient.weights, never_whole.gradient.weights);
  const auto of_cpu = cpu->EvaluateTogether({{expected.get(), asked.routing, want_gradient}});
  EXPECT_NEAR(results[0]->loss, of_cpu[0]->loss, 1e-5);
  EXPECT_EQ(objective->correct_choices(), expected->correct_choices());
  ASSERT_EQ(results[0]->gradient.weights.size(), of_cpu[0]->gradient.weights.size());
  for (size_t i = 0; i < of_cpu[0]->gradient.weights.size(); ++i) {
    EXPECT_NEAR(results[0]->gradient.weights[i], of_cpu[0]->gradient.weights[i], 1e-4) << i;
  }
}

TEST_P(CudaEvaluations, AreOneCopyOneLaunchAndOneWait) {
  ExpectOneCopyOneLaunchAndOneWait(
      {GetParam(), ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {1, 2, 3}, false, 2}, true);
}

TEST_F(CudaEvaluationsTest, AreOneLaunchUnderEveryRuleAndLoss) {
  using R = ApplicationRule;
  using L = SurrogateLoss;
  ExpectOneCopyOneLaunchAndOneWait({"olmoe_tiny", R::kEveryNewToken, L::kAnswer, {1, 3}, false, 1, false}, true);
  ExpectOneCopyOneLaunchAndOneWait({"olmoe_tiny", R::kLastPromptToken, L::kChoices, {2, 3}, true}, true);
  ExpectOneCopyOneLaunchAndOneWait({"olmoe_tiny", R::kRouterShift, L::kChoices, {2, 3}}, false);
  ExpectOneCopyOneLaunchAndOneWait({"olmoe_tiny", R::kRouterShift, L::kPairs, {1, 2, 3}}, true);
  ExpectOneCopyOneLaunchAndOneWait({"olmoe_tiny", R::kEveryNewToken, L::kPairs, {2, 3}, true}, true);
}

TEST_F(CudaEvaluationsTest, AreOneLaunchWithATrustRegion) {
  using R = ApplicationRule;
  using L = SurrogateLoss;
  ExpectOneCopyOneLaunchAndOneWait({"olmoe_tiny", R::kRouterShift, L::kPairs, {2, 3}, false, 1, true, 2}, true);
  ExpectOneCopyOneLaunchAndOneWait({"olmoe_tiny", R::kEveryNewToken, L::kChoices, {1, 3}, true, 1, true, 1}, true);
  ExpectOneCopyOneLaunchAndOneWait({"olmoe_tiny", R::kRouterShift, L::kAnswer, {2, 3}, false, 1, true, 1}, true);
}

// Evaluations that run as one pass are recorded as such. What was recorded goes with the first of its objectives, is
// recorded anew where memory moved, and does not disturb decode steps, which work in the same memory.
TEST_F(CudaEvaluationsTest, InCompanyAreThoseOfEachAlone) {
  const std::unique_ptr<MoeModel> gpu = OnCuda("olmoe_tiny", LoadTiny("olmoe_tiny")->config(), ElementType::kBfloat16);
  const Scenario low{"olmoe_tiny", ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {1, 2, 3}, false, 2};
  const Scenario high{"olmoe_tiny", ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {2, 3}, true};
  std::mt19937 rng(6);
  std::unique_ptr<NeighborhoodObjective> a = *gpu->NewObjective(MakeSpec(rng, *gpu, low));
  std::unique_ptr<NeighborhoodObjective> b = *gpu->NewObjective(MakeSpec(rng, *gpu, high));
  const auto expect_same = [&](std::vector<std::pair<NeighborhoodObjective*, const Scenario*>> asked, int64_t graphs,
                               int64_t recordings) {
    std::vector<Evaluation> evaluations;
    for (const auto& [objective, scenario] : asked) {
      evaluations.push_back({objective, MakeRouting(rng, *gpu, *scenario), true});
    }
    const RuntimeCounts before = runtime_.counts();
    const auto together = gpu->EvaluateTogether(evaluations);
    const RuntimeCounts of_pass = runtime_.counts() - before;
    EXPECT_EQ(of_pass.graph_launches, graphs);
    EXPECT_EQ(of_pass.recordings, recordings);
    for (size_t i = 0; i < evaluations.size(); ++i) {
      const LossAndGradient alone = InPieces(*gpu, {&evaluations[i], 1})[0];
      ASSERT_TRUE(together[i].ok()) << together[i].status();
      EXPECT_EQ(together[i]->loss, alone.loss) << i;
      EXPECT_EQ(together[i]->gradient.weights, alone.gradient.weights) << i;
    }
  };
  int length = 4;
  const int vocabulary = gpu->shape().vocabulary_size;
  ASSERT_TRUE(RunSegments(*gpu, {PromptSegment({{0, 80}}, RandomTokens(rng, length, vocabulary))}).ok());
  for (int step = 0; step < 3; ++step) {
    expect_same({{a.get(), &low}, {b.get(), &high}}, step > 0 ? 1 : 0, step == 1 ? 1 : 0);
    expect_same({{b.get(), &high}}, step > 0 ? 1 : 0, step == 1 ? 1 : 0);
    ASSERT_TRUE(RunSegments(*gpu, {PromptSegment({{0, 80}}, RandomTokens(rng, 1, vocabulary), length++)}).ok());
  }
  // A larger pass takes more memory than the arenas have: both move.
  Scenario larger = low;
  larger.layers = {0, 1, 2, 3};
  larger.prompt_positions = 12;
  std::unique_ptr<NeighborhoodObjective> c = *gpu->NewObjective(MakeSpec(rng, *gpu, larger));
  for (int step = 0; step < 2; ++step) {
    expect_same({{c.get(), &larger}, {a.get(), &low}, {b.get(), &high}}, step, step);
    expect_same({{b.get(), &high}}, 1, 1 - step);
  }
  // Another objective, at the address that the first may have had, is another pass.
  a.reset();
  c.reset();
  a = *gpu->NewObjective(MakeSpec(rng, *gpu, low));
  for (int step = 0; step < 2; ++step) expect_same({{a.get(), &low}, {b.get(), &high}}, step, step);
}

// What of a neighbor's states is read back: the tree's rows, and the gradient of an objective over all of them.
struct Prepared {
  std::vector<std::vector<float>> trees;
  LossAndGradient evaluated;
};

Prepared ReadPrepared(MoeModel& model, const ObjectiveSpec& spec, const RoutingOverride& routing) {
  Prepared prepared;
  Backend& backend = model.backend();
  for (const auto& one : spec.states) {
    const auto& state = static_cast<const MoeNeighborState&>(*one);
    const OwnedMatrix rows = backend.AllocateHidden(state.tree.rows());
    backend.LoadTree(*state.states, rows.view());
    std::vector<float>& values = prepared.trees.emplace_back(static_cast<size_t>(rows.rows() * rows.view().columns));
    backend.Read(rows.view(), absl::MakeSpan(values));
  }
  const auto objective = model.NewObjective(spec);
  EXPECT_TRUE(objective.ok()) << objective.status();
  const auto result = model.EvaluateTogether({{objective->get(), routing, true}});
  EXPECT_TRUE(result[0].ok()) << result[0].status();
  prepared.evaluated = *result[0];
  return prepared;
}

// The neighbors of a request that are not known are one pass: a prompt of a single token, one without a beginning, one
// that is named twice, and one that is known already. Their states are bitwise those of each alone.
TEST_P(CudaPreparations, OfARequestAreOnePass) {
  const std::unique_ptr<MoeModel> cpu = LoadTiny(GetParam());
  const std::unique_ptr<MoeModel> alone = OnCuda(GetParam(), cpu->config());
  const std::unique_ptr<MoeModel> together = OnCuda(GetParam(), cpu->config());
  const Scenario scenario{GetParam(), ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {1, 2, 3}, false, 2};
  std::mt19937 rng(8);
  ObjectiveSpec spec{MakeCases(rng, *cpu, scenario), {}, scenario.layers, scenario.rule, scenario.loss};
  spec.cases.push_back({"d", RandomTokens(rng, 19, cpu->shape().vocabulary_size), {{3}, {5, 6}}, 0, 0.5});
  spec.cases.push_back(spec.cases[1]);
  const MovingPart moving{1, 2};

  ASSERT_TRUE(together->PrepareNeighbor(spec.cases[0], moving).ok());
  const int64_t before = passes();
  auto preparations = together->NewPreparations(spec.cases, moving);
  ASSERT_TRUE(preparations.ok()) << preparations.status();
  ObjectiveSpec expected = spec;
  for (size_t i = 0; i < spec.cases.size(); ++i) {
    NeighborPreparation& one = *(*preparations)[i];
    EXPECT_EQ(one.hit(), i == 0 || i == 4) << i;
    const auto whole = one.Advance(i < 2 ? PiecewiseWork::kToTheEnd : 0);  // The second makes all that are missing.
    ASSERT_TRUE(whole.ok()) << whole.status();
    EXPECT_TRUE(*whole) << i;
    EXPECT_EQ(one.spent() > 0, i == 1) << i;
    spec.states.push_back(one.state());
  }
  EXPECT_EQ(passes() - before, 1);
  for (const NeighborCase& one : expected.cases) {
    expected.states.push_back(alone->PrepareNeighbor(one, moving)->state);
  }
  EXPECT_EQ(passes() - before, 1 + 4);  // One of them is a hit.
  const RoutingOverride routing = MakeRouting(rng, *cpu, scenario);
  const Prepared got = ReadPrepared(*together, spec, routing), wanted = ReadPrepared(*alone, expected, routing);
  EXPECT_EQ(got.trees, wanted.trees);
  EXPECT_EQ(got.evaluated.loss, wanted.evaluated.loss);
  EXPECT_EQ(got.evaluated.gradient.weights, wanted.evaluated.gradient.weights);
}

// Of more rows than a forward pass has they are several passes, each of as many as it may have.
TEST_F(CudaEvaluationsTest, ManyNeighborsArePreparedInPassesOfBoundedRows) {
  const std::unique_ptr<MoeModel> gpu = OnCuda("olmoe_tiny", LoadTiny("olmoe_tiny")->config());
  std::mt19937 rng(9);
  std::vector<NeighborCase> cases;
  for (int i = 0; i < 6; ++i) {
    cases.push_back({"a", RandomTokens(rng, i == 4 ? 60 : 10, gpu->shape().vocabulary_size), {{1}}, 0, 1});
  }
  const int64_t layers = gpu->shape().layers;
  const int64_t before = passes();
  auto preparations = gpu->NewPreparations(cases, {1});
  ASSERT_TRUE(preparations.ok());
  for (const auto& one : *preparations) {
    for (bool whole = false; !whole;) {
      const int64_t spent = one->spent();
      const auto advanced = one->Advance(25 * layers);
      ASSERT_TRUE(advanced.ok()) << advanced.status();
      whole = *advanced;
      EXPECT_LE(one->spent() - spent, 25 * layers + 60);
    }
  }
  EXPECT_EQ(passes() - before, 4);  // Of 20 rows, 20, 60 and 10.
}

INSTANTIATE_TEST_SUITE_P(Families, CudaEvaluations,
                         testing::Values("olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny",
                                         "qwen3_moe_tiny", "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny",
                                         "granite_moe_tiny"));

// Heads of every kind: normed, grouped, and expanded from latents.
INSTANTIATE_TEST_SUITE_P(Families, CudaPreparations,
                         testing::Values("olmoe_tiny", "mixtral_dense_tiny", "deepseek_v2_tiny", "granite_moe_tiny"));

}  // namespace
}  // namespace c3po
