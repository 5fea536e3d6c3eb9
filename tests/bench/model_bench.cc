// What a model folder costs on this machine: prefill, decode, preparing neighbors, and neighborhood gradient descent
// with one-token choices (the LM head is read at the choices alone) and with answers of several tokens (the whole LM
// head).
//   c3po_bench_model FOLDER [rounds=5] [neighbors=12] [tokens=30] [steps=10] [critical layers=8]
//                    [dtype=auto]
// Medians over rounds, milliseconds.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "server/model/device.h"
#include "server/model/moe_model.h"
#include "server/pathway/pathway_optimizer.h"
#include "tests/bench/timing.h"

namespace c3po {
namespace {

struct Sizes {
  int rounds, neighbors, tokens, steps, layers;
};

double Milliseconds(const std::function<void()>& work) { return 1e3 * Seconds(work); }

void Print(const std::string& what, const std::vector<double>& values) {
  std::printf("  %-56s %9.1f ms\n", what.c_str(), Median(values));
  std::fflush(stdout);
}

std::vector<int32_t> RandomTokens(std::mt19937& rng, int count, int vocabulary) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng() % vocabulary);
  return tokens;
}

constexpr int64_t kCachePositions = 1024;

bool Run(MoeModel& model, std::vector<int32_t> tokens, int start) {
  Segment segment;
  segment.kv = {{0, kCachePositions}};
  segment.start = start;
  segment.tokens = std::move(tokens);
  segment.want_logits = true;
  return model.Forward({segment}).ok();
}

void MeasureForward(MoeModel& model, int rounds, std::mt19937& rng) {
  const int vocabulary = model.shape().vocabulary_size;
  if (!model.AllocateKvCache(kCachePositions).ok()) std::exit(1);
  for (const int length : {64, 512}) {
    if (length > model.shape().context_window) continue;
    std::vector<double> times;
    for (int round = 0; round < rounds; ++round) {
      const std::vector<int32_t> prompt = RandomTokens(rng, length, vocabulary);
      times.push_back(Milliseconds([&] { Run(model, prompt, 0); }));
    }
    Print("prefill of " + std::to_string(length) + " tokens", times);
  }
  Run(model, RandomTokens(rng, 64, vocabulary), 0);
  std::vector<double> times;
  for (int i = 0; i < 64; ++i) {
    times.push_back(Milliseconds([&] { Run(model, {i}, 64 + i); }));
  }
  Print("one decoded token after 64, single stream", times);
}

bool MeasureDescent(MoeModel& model, const Sizes& sizes, int answer_tokens, std::mt19937& rng) {
  const ModelShape& shape = model.shape();
  std::vector<double> prepare, optimize;
  for (int round = 0; round < sizes.rounds; ++round) {
    ObjectiveSpec spec;
    for (int l = std::max(0, shape.layers - sizes.layers); l < shape.layers; ++l) spec.critical_layers.push_back(l);
    spec.loss = SurrogateLoss::kChoices;
    for (int i = 0; i < sizes.neighbors; ++i) {
      NeighborCase neighbor;
      neighbor.prompt = RandomTokens(rng, sizes.tokens, shape.vocabulary_size);
      for (int c = 0; c < (answer_tokens == 1 ? 2 : 1); ++c) {
        neighbor.continuations.push_back({RandomTokens(rng, answer_tokens, shape.vocabulary_size)});
      }
      spec.cases.push_back(std::move(neighbor));
    }
    prepare.push_back(Milliseconds([&] {
      for (const NeighborCase& neighbor : spec.cases) {
        spec.states.push_back(*model.PrepareNeighbor(neighbor, spec.critical_layers.front()));
      }
    }));
    OptimizationProblem problem;
    problem.critical_layers = spec.critical_layers;
    problem.core_experts = shape.experts;
    problem.initial = Pathway(static_cast<int>(spec.critical_layers.size()), shape.experts);
    for (float& w : problem.initial.weights) w = 1.0f / static_cast<float>(shape.experts);
    bool ok = true;
    optimize.push_back(Milliseconds([&] {
      auto objective = model.NewObjective(spec);
      if (!(ok = objective.ok())) return;
      problem.objective = objective->get();
      auto optimizer = MakeGradientDescent(problem, {sizes.steps, 0.1, StepRule::kAdam});
      for (bool done = false; ok && !done;) {
        auto step = (*optimizer)->Step();
        ok = step.ok();
        done = ok && *step;
      }
    }));
    if (!ok) return false;
  }
  const std::string kind = answer_tokens == 1 ? "one-token choices" : std::to_string(answer_tokens) + "-token answers";
  Print("preparing the neighbors, " + kind, prepare);
  Print(std::to_string(sizes.steps) + " steps, " + kind, optimize);
  return true;
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr,
                 "usage: c3po_bench_model FOLDER [rounds] [neighbors] [tokens] [steps] [critical layers] [dtype]\n");
    return 2;
  }
  const auto argument = [&](int i, int fallback) { return argc > i ? std::max(1, std::atoi(argv[i])) : fallback; };
  const Sizes sizes = {argument(2, 5), argument(3, 12), argument(4, 30), argument(5, 10), argument(6, 8)};
  SetComputeThreads(0);
  MoeModelOptions options;
  options.folder = argv[1];
  if (argc > 7) options.dtype = argv[7];
  const auto model = MoeModel::Load(options);
  if (!model.ok()) {
    std::fprintf(stderr, "%s\n", std::string(model.status().message()).c_str());
    return 1;
  }
  std::printf("%s, %s; %d neighbors of %d tokens, last %d layers, %d rounds\n", (*model)->shape().name.c_str(),
              (*model)->shape().dtype.c_str(), sizes.neighbors, sizes.tokens, sizes.layers, sizes.rounds);
  std::mt19937 rng(1);
  MeasureForward(**model, sizes.rounds, rng);
  return MeasureDescent(**model, sizes, 1, rng) && MeasureDescent(**model, sizes, 5, rng) ? 0 : 1;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) { return c3po::Main(argc, argv); }
