// What a model folder costs on this machine: prefill, decode, preparing neighbors, and neighborhood gradient descent
// with one-token choices (the LM head is read at the choices alone) and with answers of several tokens (the whole LM
// head). How each grows is scaling_bench.cc's.
//   c3po_bench_model FOLDER [rounds=5] [neighbors=12] [tokens=30] [steps=10] [critical layers=8]
//                    [dtype=auto]
// Medians over rounds, milliseconds.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "server/compute/device.h"
#include "tests/bench/model_work.h"
#include "tests/bench/timing.h"
#include "tests/bench/value_or_exit.h"

namespace c3po {
namespace {

struct Sizes {
  int rounds, neighbors, tokens, steps, layers;
};

void Print(const std::string& what, const std::vector<double>& seconds) {
  std::printf("  %-56s %9.1f ms\n", what.c_str(), Median(seconds) * 1e3);
  std::fflush(stdout);
}

constexpr int64_t kCachePositions = 1024;

void Run(MoeModel& model, std::vector<int32_t> tokens, int start) {
  OkOrExit(RunSegments(model, {SequenceTokens(0, kCachePositions, start, std::move(tokens))}).status());
}

void MeasureForward(MoeModel& model, int rounds, std::mt19937& random) {
  const int vocabulary = model.shape().vocabulary_size;
  for (const int length : {64, 512}) {
    if (length > model.shape().context_window) continue;
    std::vector<double> times;
    for (int round = 0; round < rounds; ++round) {
      const std::vector<int32_t> prompt = RandomTokens(random, length, vocabulary);
      times.push_back(Seconds([&] { Run(model, prompt, 0); }));
    }
    Print("prefill of " + std::to_string(length) + " tokens", times);
  }
  Run(model, RandomTokens(random, 64, vocabulary), 0);
  std::vector<double> times;
  for (int i = 0; i < 64; ++i) times.push_back(Seconds([&] { Run(model, {i}, 64 + i); }));
  Print("one decoded token after 64, single stream", times);
}

void MeasureDescent(MoeModel& model, const Sizes& sizes, int answer_tokens, std::mt19937& random) {
  const ModelShape& shape = model.shape();
  const Pathway initial = PathwayOf(model, RandomTokens(random, sizes.tokens, shape.vocabulary_size));
  std::vector<double> prepare, optimize;
  for (int round = 0; round < sizes.rounds; ++round) {
    const std::vector<NeighborCase> cases = RandomNeighbors(
        random, {sizes.neighbors, sizes.tokens, answer_tokens == 1 ? 2 : 1, answer_tokens}, shape.vocabulary_size);
    ObjectiveSpec neighbors;
    prepare.push_back(Seconds(
        [&] { neighbors = PrepareNeighbors(model, cases, LastLayers(shape, sizes.layers), SurrogateLoss::kChoices); }));
    optimize.push_back(Seconds([&] { Descend(model, neighbors, initial, /*core_experts=*/0, sizes.steps); }));
  }
  const std::string kind = answer_tokens == 1 ? "one-token choices" : std::to_string(answer_tokens) + "-token answers";
  Print("preparing the neighbors, " + kind, prepare);
  Print(std::to_string(sizes.steps) + " steps, " + kind, optimize);
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
  const auto model = ValueOrExit(MoeModel::Load(options));
  OkOrExit(model->AllocateKvCache(SlotsOf(kCachePositions)));
  std::printf("%s, %s; %d neighbors of %d tokens, last %d layers, %d rounds\n", model->shape().name.c_str(),
              model->shape().dtype.c_str(), sizes.neighbors, sizes.tokens, sizes.layers, sizes.rounds);
  std::mt19937 random(1);
  MeasureForward(*model, sizes.rounds, random);
  MeasureDescent(*model, sizes, 1, random);
  MeasureDescent(*model, sizes, 5, random);
  return 0;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) { return c3po::Main(argc, argv); }
