// The model on a GPU, of every family and in both precisions: its logits against transformers' and the oracle's, its
// losses and gradients against those of the CPU, which are held against autograd elsewhere.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "server/compute/aten/expert_selection.h"
#include "server/compute/aten/experts.h"
#include "server/compute/aten/products.h"
#include "server/compute/aten/torch_device.h"
#include "server/weights/safetensors_file.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/reference_model.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {
namespace {

struct Case {
  const char* model;
  const char* dtype;
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.model << " " << c.dtype; }

// Root of the mean square of the difference, over the spread of `expected`.
double Distance(const std::vector<float>& got, const std::vector<float>& expected) {
  EXPECT_EQ(got.size(), expected.size());
  double square = 0;
  for (size_t i = 0; i < got.size(); ++i) square += std::pow(double{got[i]} - expected[i], 2);
  return std::sqrt(square / static_cast<double>(got.size())) / Spread(expected);
}

class OnGpu : public testing::Test {
 protected:
  void SetUp() override {
    const auto device = aten::OpenDevice("cuda");
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    device_ = *device;
  }
  at::Device device_ = at::kCPU;
};

class ModelOnGpu : public OnGpu, public testing::WithParamInterface<Case> {
 protected:
  static bool Rounds() { return GetParam().dtype == std::string("bfloat16"); }

  static std::vector<std::vector<float>> Logits(MoeModel& model, const std::vector<OwnedSegment>& segments) {
    const auto out = RunSegments(model, segments);
    EXPECT_TRUE(out.ok()) << out.status();
    std::vector<std::vector<float>> logits;
    for (const SegmentOutput& one : *out) logits.push_back(one.readout.logits);
    return logits;
  }
};

// In bfloat16 rounding swaps experts that are nearly as probable, and from there on a row is another: as transformers'
// own does, so that a part of the rows must be near.
TEST_P(ModelOnGpu, LogitsAreThoseOfTransformersAndOfTheOracle) {
  const auto model = LoadTiny(GetParam().model, GetParam().dtype, "cuda");
  const ReferenceModel reference(model->config(), TinyWeights(GetParam().model, model->config()), at::kDouble,
                                 /*roundings=*/0, Rounds() ? at::kBFloat16 : at::kFloat);
  const auto golden = *SafetensorsFile::Open(TinyFolder(GetParam().model) + "/golden.safetensors");
  int rows = 0, near = 0;
  for (int i = 0; i < 3; ++i) {
    const std::string prefix = "prompt" + std::to_string(i);
    const auto read = [&](const std::string& name, auto* out) {
      const TensorView* view = golden->Find(prefix + name);
      ASSERT_NE(view, nullptr);
      out->resize(view->bytes.size() / sizeof((*out)[0]));
      std::memcpy(out->data(), view->bytes.data(), view->bytes.size());
    };
    std::vector<int32_t> tokens;
    std::vector<float> transformers;
    read(".ids", &tokens);
    read(".logits", &transformers);
    const at::Tensor oracle = reference.LogProbabilities(tokens, std::nullopt).to(at::kFloat).contiguous();
    for (size_t t = 0; t < tokens.size(); ++t, ++rows) {  // Prefill of one token, then decode.
      std::vector<float> got = Logits(*model, {PromptSegment({{0, 64}}, {tokens[t]}, static_cast<int>(t))})[0];
      const auto width = static_cast<int64_t>(got.size());
      const float* row = oracle.const_data_ptr<float>() + static_cast<int64_t>(t) * width;
      const float* theirs = transformers.data() + static_cast<int64_t>(t) * width;
      if (!Rounds()) {
        EXPECT_LE(Distance(got, {theirs, theirs + width}), 2e-4) << "prompt " << i << " row " << t;
      }
      const at::Tensor own = at::log_softmax(at::from_blob(got.data(), {width}, at::kFloat), 0);
      const float* logprobs = own.const_data_ptr<float>();
      const double distance = Distance({logprobs, logprobs + width}, {row, row + width});
      near += distance <= (Rounds() ? 0.1 : 2e-4);
    }
  }
  EXPECT_GE((Rounds() ? 3 : 1) * near, rows);
}

// Prompts in chunks, steps of several sequences of other lengths, and both in one pass, over scattered slots.
TEST_P(ModelOnGpu, APassOverManySequencesGivesEachItsOwn) {
  const auto model = LoadTiny(GetParam().model, GetParam().dtype, "cuda");
  const std::vector<int32_t> tokens = {5, 17, 99, 3, 3, 42, 200, 7, 11, 64, 90, 31};
  const std::vector<KvRun> scattered[] = {{{200, 3}, {100, 1}, {101, 8}}, {{20, 2}, {30, 2}}, {{60, 9}}};
  const size_t lengths[] = {12, 4, 9};
  std::vector<std::vector<float>> expected;
  std::vector<OwnedSegment> chunks, steps;
  for (int i = 0; i < 3; ++i) {
    const std::vector<int32_t> own(tokens.begin(), tokens.begin() + static_cast<int64_t>(lengths[i]));
    expected.push_back(Logits(*model, {PromptSegment({{130, 16}}, own)})[0]);
    const int last = static_cast<int>(lengths[i]) - 1;
    chunks.push_back(PromptSegment(scattered[i], {own.begin(), own.begin() + (i == 0 ? 3 : last)}));
    steps.push_back(PromptSegment(scattered[i], {own.begin() + (i == 0 ? 3 : last), own.end()}, i == 0 ? 3 : last));
  }
  Logits(*model, chunks);
  const auto got = Logits(*model, steps);
  const double limit = Rounds() ? 0.1 : 2e-4;
  int near = 0;
  for (int i = 0; i < 3; ++i) near += Distance(got[i], expected[i]) <= limit;
  EXPECT_GE(near, Rounds() ? 2 : 3);
}

TEST_P(ModelOnGpu, TargetsAreScored) {
  const auto model = LoadTiny(GetParam().model, GetParam().dtype, "cuda");
  OwnedSegment segment = PromptSegment({{0, 8}}, {1, 2, 3});
  segment.targets = {2, 3, 7};
  const auto out = RunSegments(*model, {segment, PromptSegment({{8, 8}}, {4, 5})});
  ASSERT_TRUE(out.ok()) << out.status();
  ASSERT_EQ(out->at(0).target_logprobs.size(), 3u);
  const std::vector<float>& logits = out->at(0).readout.logits;
  double sum = 0;
  for (float v : logits) sum += std::exp(double{v});
  EXPECT_NEAR(out->at(0).target_logprobs[2], logits[7] - std::log(sum), 1e-4);
  EXPECT_EQ(out->at(1).readout.logits.size(), logits.size());
}

// In bfloat16 the CPU computes in float32 over the same weights: losses are near, gradients point the same way.
TEST_P(ModelOnGpu, LossesAndGradientsAreThoseOfTheCpu) {
  const auto gpu = LoadTiny(GetParam().model, GetParam().dtype, "cuda"),
             cpu = LoadTiny(GetParam().model, GetParam().dtype);
  const Scenario scenarios[] = {
      {GetParam().model, ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {0, 1, 2, 3}},
      {GetParam().model, ApplicationRule::kRouterShift, SurrogateLoss::kAnswer, {1, 2, 3}},
      {GetParam().model, ApplicationRule::kLastPromptToken, SurrogateLoss::kChoices, {2, 3}, true},
      {GetParam().model, ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {2, 3}, false, 6},
      {GetParam().model, ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {1, 2, 3}, false, 1, false},
      {GetParam().model, ApplicationRule::kRouterShift, SurrogateLoss::kPairs, {1, 2, 3}, true, 1, true, 1},
      {GetParam().model, ApplicationRule::kEveryNewToken, SurrogateLoss::kPairs, {2, 3}}};
  int near = 0, all = 0;
  for (const Scenario& scenario : scenarios) {
    double loss[2];
    Pathway gradient[2];
    for (MoeModel* model : {gpu.get(), cpu.get()}) {
      std::mt19937 rng(1);
      const ObjectiveSpec spec = MakeSpec(rng, *model, scenario);
      auto objective = model->NewObjective(spec);
      ASSERT_TRUE(objective.ok()) << objective.status();
      const RoutingOverride routing = MakeRouting(rng, *model, scenario);
      for (int again = 0; again < 2; ++again) {  // The second reuses what the first remembered.
        const auto result = (*objective)->Evaluate(routing, &gradient[model == cpu.get()]);
        ASSERT_TRUE(result.ok()) << result.status();
        loss[model == cpu.get()] = *result;
      }
    }
    double dot = 0, own = 0, other = 0;
    for (size_t i = 0; i < gradient[0].weights.size(); ++i) {
      dot += double{gradient[0].weights[i]} * gradient[1].weights[i];
      own += std::pow(double{gradient[0].weights[i]}, 2);
      other += std::pow(double{gradient[1].weights[i]}, 2);
    }
    ASSERT_GT(other, 0);
    const double cosine = dot / std::sqrt(own * other), size = std::sqrt(own / other);
    const bool is_near = Rounds() ? std::abs(loss[0] - loss[1]) <= 0.05 * std::abs(loss[1]) && cosine > 0.9
                                  : std::abs(loss[0] - loss[1]) <= 1e-4 * std::abs(loss[1]) && cosine > 0.9999 &&
                                        std::abs(size - 1) < 1e-2;
    near += is_near;
    ++all;
    if (!Rounds()) {
      EXPECT_TRUE(is_near) << "loss " << loss[0] << ", " << loss[1] << "; cosine " << cosine << ", size " << size;
    }
  }
  EXPECT_GE((Rounds() ? 2 : 1) * near, all);
}

INSTANTIATE_TEST_SUITE_P(Families, ModelOnGpu, testing::ValuesIn([] {
                           std::vector<Case> cases;
                           for (const char* model :
                                {"olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny", "qwen3_moe_tiny",
                                 "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny", "granite_moe_tiny"}) {
                             for (const char* dtype : {"float32", "bfloat16"}) cases.push_back({model, dtype});
                           }
                           return cases;
                         }()));

// Sizes that the grouped product takes: the whole block and its way back against float32 on the CPU.
TEST_F(OnGpu, ExpertsAsOneProductAreThoseOfTheCpu) {
  const c10::InferenceMode inference;
  at::manual_seed(7);
  constexpr int64_t kRows = 37, kExperts = 16, kHidden = 64, kNeurons = 24;
  const auto rounded = [](at::IntArrayRef shape, double scale) { return (at::randn(shape) * scale).to(at::kBFloat16); };
  const at::Tensor gate_up = rounded({kExperts, 2 * kNeurons, kHidden}, 0.15);
  const at::Tensor down = rounded({kHidden, kExperts * kNeurons}, 0.2);
  const at::Tensor normed = rounded({kRows, kHidden}, 1), doutput = rounded({kRows, kHidden}, 1);
  const at::Tensor router = rounded({kExperts, kHidden}, 0.2);
  ModelConfig config;
  config.experts = kExperts;
  config.experts_per_token = 3;
  aten::LayerWeights layer;
  layer.router = router.to(at::kFloat);
  const aten::Mixing mixing = aten::MixExperts(normed.to(at::kFloat), layer, config, {});
  const auto run = [&](const aten::ExpertWeights& networks, at::TensorOptions options) {
    aten::Mixing own = mixing;
    for (at::Tensor* x : {&own.selected, &own.selected_mask, &own.weights}) *x = x->to(options.device());
    aten::ExpertTape tape;
    at::Tensor dweights;
    const at::Tensor out = aten::RunExperts(normed.to(options), own, networks, &tape);
    const at::Tensor dnormed =
        aten::ExpertsBackward(doutput.to(options), normed.to(options), own, networks, tape, dweights);
    return std::vector<at::Tensor>{out.cpu().to(at::kFloat), dnormed.cpu().to(at::kFloat), dweights.cpu()};
  };
  ASSERT_TRUE(aten::CanMultiplyGroups(normed.to(device_), kNeurons));
  const auto expected = run({gate_up.to(at::kFloat), down.to(at::kFloat)}, at::TensorOptions(at::kFloat));
  const auto got = run({gate_up.to(device_), down.to(device_)}, at::TensorOptions(at::kBFloat16).device(device_));
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = (got[i] - expected[i]).norm().item<double>() / expected[i].norm().item<double>();
    EXPECT_LE(error, 0.02) << "result " << i;
  }
}

}  // namespace
}  // namespace c3po
