// Neighborhood gradient descent with cached states against the naive way: the same neighbors, core set and number of
// steps, but every step a full forward and backward pass of every neighbor through all layers, by autograd over frozen
// weights on the same kernels. Then one step of several requests, each with neighbors and a pathway of its own: one
// after the other, and together as one pass. Runs alternate; prints medians and their ratio.
//   c3po_bench_ngd [rounds=5] [neighbors=3] [tokens=64] [steps=10] [requests=4]
// The model has random weights and OLMoE's shape in small: 12 layers, hidden 512, 32 experts of 256, top-8, vocabulary
// 50304.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <limits>
#include <random>
#include <vector>

#include "server/compute/aten/expert_selection.h"
#include "server/compute/aten/experts.h"
#include "server/compute/aten/projections.h"
#include "server/compute/aten/rope_tensors.h"
#include "server/compute/aten/row_operations.h"
#include "server/compute/cpu/cpu_backend.h"
#include "server/model/moe_model.h"
#include "server/pathway/pathway_optimizer.h"
#include "tests/bench/model_work.h"
#include "tests/bench/timing.h"
#include "tests/server/compute/tensor_weights.h"
#include "tests/server/pathway/one_unit.h"

namespace c3po {
namespace {

constexpr int kCriticalLayers = 5, kCoreExperts = 20;

ModelConfig BenchConfig() {
  ModelConfig config;
  config.architecture = "OlmoeForCausalLM";
  config.hidden_size = 512;
  config.layers = 12;
  config.heads = config.kv_heads = 8;
  config.head_dim = 64;
  config.intermediate_size = 256;
  config.experts = 32;
  config.experts_per_token = 8;
  config.vocabulary_size = 50304;
  config.context_window = 1024;
  config.qk_norm = ModelConfig::QkNorm::kWhole;
  config.FillDerived();
  return config;
}

aten::MoeWeights RandomWeights(const ModelConfig& config) {
  const auto random = [](std::vector<int64_t> sizes) { return at::randn(sizes, at::kFloat) * 0.03; };
  const auto ones = [](int64_t size) { return at::ones({size}, at::kFloat); };
  const int64_t d = config.hidden_size, f = config.intermediate_size, e = config.experts;
  aten::MoeWeights weights;
  weights.embedding = random({config.vocabulary_size, d});
  weights.lm_head = random({config.vocabulary_size, d});
  weights.final_norm = ones(d);
  for (int l = 0; l < config.layers; ++l) {
    aten::LayerWeights layer;
    layer.attention_norm = layer.q_norm = layer.k_norm = layer.moe_norm = ones(d);
    layer.qkv = random({3 * d, d});
    layer.output = random({d, d});
    layer.router = random({e, d});
    layer.experts = {random({e, 2 * f, d}), random({d, e * f})};
    weights.layers.push_back(std::move(layer));
  }
  return weights;
}

at::Tensor CausalAttention(const aten::Projections& rows, const ModelConfig& config) {
  const int64_t n = rows.q.size(0);
  const at::Tensor q = rows.q.transpose(0, 1), k = rows.k.transpose(0, 1), v = rows.v.transpose(0, 1);
  const at::Tensor mask = at::full({n, n}, -std::numeric_limits<float>::infinity(), at::kFloat).triu(1);
  const at::Tensor p = at::softmax(at::bmm(q, k.transpose(1, 2)) / std::sqrt(double(config.head_dim)) + mask, -1);
  return at::bmm(p, v).transpose(0, 1).reshape({n, config.heads * config.head_dim});
}

// One neighbor, whole: -log p(answer | prompt, w) with w at the last prompt token.
at::Tensor NaiveLoss(const MoeModel& model, const aten::MoeWeights& weights, const aten::RopeTensors& table,
                     const NeighborCase& neighbor, const std::vector<int>& layers, const at::Tensor& w) {
  const ModelConfig& config = model.config();
  const auto n = static_cast<int64_t>(neighbor.prompt.size());
  const at::Tensor tokens = at::tensor(std::vector<int64_t>(neighbor.prompt.begin(), neighbor.prompt.end()), at::kLong);
  const aten::RopeTensors rope = table.Select(at::arange(n, at::kLong), at::kFloat);
  const at::Tensor last = at::arange(n, at::kLong).eq(n - 1).unsqueeze(1);
  at::Tensor x = weights.embedding.index_select(0, tokens);
  for (int l = 0; l < config.layers; ++l) {
    const aten::LayerWeights& layer = weights.layers[l];
    const aten::Projections rows =
        aten::ProjectAttention(aten::RmsNorm(x, layer.attention_norm, config.rms_norm_eps), layer, config, rope);
    x = x + at::linear(CausalAttention(rows, config), layer.output);
    const at::Tensor h = aten::RmsNorm(x, layer.moe_norm, config.rms_norm_eps);
    aten::LayerRouting routing;
    const auto found = std::find(layers.begin(), layers.end(), l);
    if (found != layers.end()) {
      routing.weights = w.select(0, found - layers.begin()).unsqueeze(0).expand({n, config.experts});
      routing.weights_rows = last;
    }
    x = x + aten::RunExperts(h, aten::MixExperts(h, layer, config, routing), layer.experts, nullptr);
  }
  const at::Tensor normed = aten::RmsNorm(x.narrow(0, n - 1, 1), weights.final_norm, config.rms_norm_eps);
  const at::Tensor logits = at::linear(normed, weights.lm_head);
  return -at::log_softmax(logits, -1)[0][neighbor.continuations[0][0]];
}

class NaiveObjective final : public NeighborhoodObjective {
 public:
  // `weights`: the model's, as ATen reads them. Both outlive this object.
  NaiveObjective(const MoeModel& model, const aten::MoeWeights& weights, std::vector<NeighborCase> cases)
      : model_(model),
        weights_(weights),
        rope_(aten::RopeTensors::Of(aten::MakeRopeTable(model.config()), at::kCPU)),
        cases_(std::move(cases)) {}
  bool weights_are_normalized() const override { return model_.config().norm_topk_prob; }
  absl::StatusOr<double> Evaluate(const RoutingOverride& routing, Pathway* gradient) override {
    const at::Tensor w = at::from_blob(const_cast<float*>(routing.values.weights.data()),
                                       {routing.values.layers, routing.values.experts}, at::kFloat)
                             .clone()
                             .requires_grad_(gradient != nullptr);
    at::Tensor total = at::zeros({}, at::kFloat);
    for (const NeighborCase& neighbor : cases_)
      total = total + NaiveLoss(model_, weights_, rope_, neighbor, routing.layers, w) / double(cases_.size());
    if (gradient) {
      total.backward();
      *gradient = routing.values;
      const at::Tensor g = w.grad().contiguous();
      std::copy_n(g.const_data_ptr<float>(), gradient->weights.size(), gradient->weights.begin());
    }
    return total.item<double>();
  }

 private:
  const MoeModel& model_;
  const aten::MoeWeights& weights_;
  const aten::RopeTensors rope_;
  const std::vector<NeighborCase> cases_;
};

std::vector<double> Optimize(NeighborhoodObjective* objective, const Pathway& initial, const std::vector<int>& layers,
                             int steps) {
  OptimizationProblem problem;
  problem.initial = initial;
  problem.critical_layers = layers;
  problem.core_experts = kCoreExperts;
  problem.objective = objective;
  auto optimizer = *MakeGradientDescent(problem, {steps, 0.1, StepRule::kAdam});
  while (!*OneUnit(*optimizer)) {
  }
  return optimizer->losses();
}

ObjectiveSpec RandomSpec(std::mt19937& rng, const ModelConfig& config, int neighbors, int tokens) {
  ObjectiveSpec spec;
  for (int l = config.layers - kCriticalLayers; l < config.layers; ++l) spec.critical_layers.push_back(l);
  spec.cases = RandomNeighbors(rng, {neighbors, tokens}, config.vocabulary_size);
  return spec;
}

// Everyone's weights nearly the same.
Pathway RandomPathway(std::mt19937& rng, const ModelConfig& config) {
  Pathway pathway(kCriticalLayers, config.experts);
  for (float& w : pathway.weights)
    w = 1.0f / static_cast<float>(config.experts) * std::uniform_real_distribution<float>(0.9f, 1.1f)(rng);
  return pathway;
}

// One gradient step's evaluation of each of several requests. False: a loss is another in company.
bool CompareTogether(MoeModel& model, std::mt19937& rng, int requests, int neighbors, int tokens, int rounds) {
  struct Request {
    std::unique_ptr<NeighborhoodObjective> objective;
    Evaluation evaluation;
  };
  std::vector<Request> all(requests);
  for (Request& request : all) {
    ObjectiveSpec spec = RandomSpec(rng, model.config(), neighbors, tokens);
    spec = PrepareNeighbors(model, spec.cases, spec.critical_layers, spec.loss);
    request.objective = *model.NewObjective(spec);
    request.evaluation = {request.objective.get(),
                          {RoutingOverride::Kind::kWeights, spec.critical_layers, RandomPathway(rng, model.config())},
                          /*want_gradient=*/true};
  }
  std::vector<Evaluation> evaluations;
  for (const Request& request : all) evaluations.push_back(request.evaluation);
  std::vector<double> apart, together, ratio;
  for (int round = -1; round < rounds; ++round) {  // In the first one the experts of the first layer are remembered.
    std::vector<double> losses;
    std::vector<absl::StatusOr<LossAndGradient>> results;
    const double one_after_the_other = Seconds([&] {
      for (const Evaluation& evaluation : evaluations) losses.push_back(evaluation.Run()->loss);
    });
    const double in_one_pass = Seconds([&] { results = model.EvaluateTogether(evaluations); });
    for (size_t i = 0; i < losses.size(); ++i) {
      if (results[i]->loss == losses[i]) continue;
      std::fprintf(stderr, "request %zu: loss %g together, %g alone\n", i, results[i]->loss, losses[i]);
      return false;
    }
    if (round < 0) continue;
    apart.push_back(one_after_the_other);
    together.push_back(in_one_pass);
    ratio.push_back(one_after_the_other / in_one_pass);
  }
  std::printf("one step of %d requests, %d neighbors each\n", requests, neighbors);
  std::printf("  one after the other                          %9.1f ms\n", Median(apart) * 1e3);
  std::printf("  together                                     %9.1f ms\n", Median(together) * 1e3);
  std::printf("  ratio, median of pairs                       %9.2f\n", Median(ratio));
  return true;
}

int Main(int argc, char** argv) {
  const auto argument = [&](int i, int fallback) { return argc > i ? std::max(1, std::atoi(argv[i])) : fallback; };
  const int rounds = argument(1, 5), neighbors = argument(2, 3), tokens = argument(3, 64), steps = argument(4, 10);
  const int requests = argument(5, 4);
  const ModelConfig config = BenchConfig();
  at::manual_seed(1);
  const aten::MoeWeights weights = RandomWeights(config);
  const cpu::CpuWeights packed =
      cpu::PackWeights(config, ViewsOf(weights), ElementType::kFloat32, cpu::WeightLayout::kPanels);
  const auto new_model = [&](int64_t cache_bytes) {  // All share the weights.
    return MoeModel::OnBackend(config, std::make_unique<cpu::CpuBackend>(config, packed, aten::MakeRopeTable(config)),
                               cache_bytes);
  };
  const auto model = new_model(1 << 30);
  std::mt19937 rng(1);
  ObjectiveSpec spec = RandomSpec(rng, config, neighbors, tokens);
  const Pathway initial = RandomPathway(rng, config);

  std::vector<double> prepare, cached, naive, ratio;
  for (int round = 0; round < rounds; ++round) {
    const auto fresh = new_model(round == 0 ? 0 : 1 << 30);
    prepare.push_back(Seconds([&] { spec = PrepareNeighbors(*fresh, spec.cases, spec.critical_layers, spec.loss); }));
    std::vector<double> ours, theirs;
    cached.push_back(
        Seconds([&] { ours = Optimize((*fresh->NewObjective(spec)).get(), initial, spec.critical_layers, steps); }));
    NaiveObjective objective(*model, weights, spec.cases);
    naive.push_back(Seconds([&] { theirs = Optimize(&objective, initial, spec.critical_layers, steps); }));
    ratio.push_back(naive.back() / cached.back());
    for (size_t i = 0; i < ours.size(); ++i) {
      if (std::abs(ours[i] - theirs[i]) > 1e-3 * std::abs(theirs[i])) {
        std::fprintf(stderr, "losses differ at step %zu: %g, naive %g\n", i, ours[i], theirs[i]);
        return 1;
      }
    }
  }
  std::printf("%d neighbors of %d tokens, last %d of %d layers, %d core experts, %d steps, %d rounds, %d threads\n",
              neighbors, tokens, kCriticalLayers, config.layers, kCoreExperts, steps, rounds, at::get_num_threads());
  std::printf("  preparing the neighbors, once per reference  %9.1f ms\n", Median(prepare) * 1e3);
  std::printf("  optimization with cached states              %9.1f ms\n", Median(cached) * 1e3);
  std::printf("  naive full forward and backward              %9.1f ms\n", Median(naive) * 1e3);
  std::printf("  ratio naive / cached, median of pairs        %9.1f\n", Median(ratio));
  return CompareTogether(*model, rng, requests, neighbors, tokens, rounds) ? 0 : 1;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) { return c3po::Main(argc, argv); }
