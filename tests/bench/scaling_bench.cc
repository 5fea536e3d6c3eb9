// How the parts of a request grow, on a model folder: one Markdown table of medians per sweep, each of which changes
// one size and leaves the others at the paper's settings (Defaults). Rounds go through all values of a sweep in turn,
// so that a slow minute of the machine falls on every row and not on one.
//   c3po_bench_scaling FOLDER [--rounds 5] [--threads 0] [--device cpu] [--dtype auto] [--arithmetic float32]
//                      [--kv-cache-dtype auto] [--loss answer|choices]
//                      [--prompt-tokens 16,32,...] [--sequences 1,2,...] [--steps 1,2,...] [--critical-layers 1,2,...]
//                      [--neighbors 1,2,...]
// No time decides the exit status; what must hold at every size does: a sequence's logits do not depend on how many
// decode beside it, the losses of few steps are the first ones of many, and the loss of many neighbors is the mean of
// each one's.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/compute/device.h"
#include "server/types/device_name.h"
#include "tests/bench/markdown_table.h"
#include "tests/bench/model_work.h"
#include "tests/bench/timing.h"
#include "tests/bench/value_or_exit.h"

namespace c3po {
namespace {

// What a sweep leaves alone.
struct Defaults {
  static constexpr int kContext = 64;  // Tokens before the decoded one; of a neighbor's prompt.
  static constexpr int kSteps = 10;
  static constexpr int kCriticalLayers = 5;
  static constexpr int kNeighbors = 3;
  static constexpr int kCoreExperts = 20;
};
constexpr int kDecodeSteps = 8;  // Of each round; a round's time is their median.

struct Flags {
  MoeModelOptions model;
  int rounds = 5;
  int threads = 0;
  std::string loss = "answer";
  std::vector<int> prompt_tokens = {16, 32, 64, 128, 256, 512, 1024};
  std::vector<int> sequences = {1, 2, 4, 8, 16, 32};
  std::vector<int> steps = {1, 2, 5, 10, 20};
  std::vector<int> critical_layers = {1, 2, 3, 5, 8, 12, 16, 20, 24, 28, 32};
  std::vector<int> neighbors = {1, 2, 3, 6, 12, 24};
};

std::string Milliseconds(double seconds) { return absl::StrFormat("%.2f", seconds * 1e3); }

// Median seconds of each value.
std::map<int, double> Sweep(const std::vector<int>& values, int rounds, const std::function<double(int)>& seconds_of) {
  seconds_of(values.front());  // Warms up what the first round would pay for.
  std::map<int, std::vector<double>> seconds;
  for (int round = 0; round < rounds; ++round) {
    for (const int value : values) seconds[value].push_back(seconds_of(value));
  }
  std::map<int, double> medians;
  for (const auto& [value, times] : seconds) medians[value] = Median(times);
  return medians;
}

class ScalingBench {
 public:
  ScalingBench(MoeModel& model, const Flags& flags) : model_(model), shape_(model.shape()), flags_(flags) {}

  // Whether all checks held.
  bool Run() {
    OkOrExit(
        model_.AllocateKvCache(SlotsOf(std::max(Largest(flags_.prompt_tokens), Largest(flags_.sequences) * kSlots))));
    SweepPromptTokens();
    SweepSequences();
    CheckThatSequencesAreIndependent();
    initial_ = PathwayOf(model_, RandomTokens(random_, Defaults::kContext, shape_.vocabulary_size));
    const int continuations = flags_.loss == "choices" ? 2 : 1;
    cases_ = RandomNeighbors(random_,
                             {std::max(Largest(flags_.neighbors), Defaults::kNeighbors), Defaults::kContext,
                              continuations, /*answer_tokens=*/1},
                             shape_.vocabulary_size);
    SweepSteps();
    SweepCriticalLayers();
    SweepNeighbors();
    return ok_;
  }

 private:
  static constexpr int kSlots = Defaults::kContext + 1;  // Of one decoding sequence.

  static int Largest(const std::vector<int>& values) { return *std::max_element(values.begin(), values.end()); }

  void Check(bool holds, const std::string& what) {
    if (holds) return;
    std::fprintf(stderr, "does not hold: %s\n", what.c_str());
    ok_ = false;
  }

  std::vector<SegmentOutput> Forward(const std::vector<OwnedSegment>& segments) {
    return ValueOrExit(RunSegments(model_, segments));
  }

  void SweepPromptTokens() {
    const auto seconds = Sweep(flags_.prompt_tokens, flags_.rounds, [&](int tokens) {
      const OwnedSegment prompt = SequenceTokens(0, tokens, 0, RandomTokens(random_, tokens, shape_.vocabulary_size));
      return Seconds([&] { Forward({prompt}); });
    });
    MarkdownTable table("Prefill of one prompt in one pass:", {"prompt tokens", "ms", "tokens/s", "ms per token"});
    for (const auto& [tokens, median] : seconds) {
      table.Row({absl::StrCat(tokens), Milliseconds(median), absl::StrFormat("%.0f", tokens / median),
                 absl::StrFormat("%.2f", median * 1e3 / tokens)});
    }
  }

  // One new token of each of the first `count` sequences, all after the same number of tokens.
  std::vector<OwnedSegment> DecodeStep(int count) {
    std::vector<OwnedSegment> segments;
    for (int i = 0; i < count; ++i) {
      segments.push_back(SequenceTokens(int64_t{i} * kSlots, kSlots, Defaults::kContext,
                                        RandomTokens(random_, 1, shape_.vocabulary_size)));
    }
    return segments;
  }

  void SweepSequences() {
    for (int i = 0; i < Largest(flags_.sequences); ++i) {
      Forward({SequenceTokens(int64_t{i} * kSlots, kSlots, 0,
                              RandomTokens(random_, Defaults::kContext, shape_.vocabulary_size))});
    }
    const auto seconds = Sweep(flags_.sequences, flags_.rounds, [&](int count) {
      std::vector<double> steps;
      for (int i = 0; i < kDecodeSteps; ++i) {
        const std::vector<OwnedSegment> step = DecodeStep(count);
        steps.push_back(Seconds([&] { Forward(step); }));
      }
      return Median(steps);
    });
    MarkdownTable table(absl::StrFormat("One decode step, every sequence after %d tokens:", Defaults::kContext),
                        {"sequences", "ms per step", "tokens/s", "tokens/s over those of the first row"});
    const auto [fewest, shortest] = *seconds.begin();
    for (const auto& [count, median] : seconds) {
      table.Row({absl::StrCat(count), Milliseconds(median), absl::StrFormat("%.1f", count / median),
                 absl::StrFormat("%.2f", count / median * shortest / fewest)});
    }
  }

  void CheckThatSequencesAreIndependent() {
    const std::vector<OwnedSegment> batch = DecodeStep(Largest(flags_.sequences));
    const std::vector<SegmentOutput> together = Forward(batch);
    const double tolerance = shape_.batch_invariant ? 0 : 2e-2;  // Of the largest logit.
    for (size_t i = 0; i < batch.size(); ++i) {
      const std::vector<float> alone = Forward({batch[i]}).front().readout.logits;
      double difference = 0, largest = 0;
      for (size_t j = 0; j < alone.size(); ++j) {
        difference = std::max(difference, std::abs(double{alone[j]} - together[i].readout.logits[j]));
        largest = std::max(largest, std::abs(double{alone[j]}));
      }
      Check(!alone.empty() && difference <= tolerance * largest,
            absl::StrFormat("sequence %d of %d has the logits that it has alone (off by %g of %g)", i, batch.size(),
                            difference, largest));
    }
  }

  // `neighbors` of the cases, prepared; not timed, as a reference is prepared once.
  ObjectiveSpec Prepare(int neighbors, int critical_layers) {
    return PrepareNeighbors(model_, {cases_.begin(), cases_.begin() + neighbors}, LastLayers(shape_, critical_layers),
                            flags_.loss == "choices" ? SurrogateLoss::kChoices : SurrogateLoss::kAnswer);
  }

  std::vector<double> Losses(const ObjectiveSpec& neighbors, int steps) {
    return Descend(model_, neighbors, initial_, Defaults::kCoreExperts, steps);
  }

  void SweepSteps() {
    const ObjectiveSpec neighbors = Prepare(Defaults::kNeighbors, Defaults::kCriticalLayers);
    std::map<int, std::vector<double>> losses;
    const auto seconds = Sweep(flags_.steps, flags_.rounds,
                               [&](int steps) { return Seconds([&] { losses[steps] = Losses(neighbors, steps); }); });
    MarkdownTable table(absl::StrFormat("One optimization, %d neighbors of %d tokens, last %d layers:",
                                        Defaults::kNeighbors, Defaults::kContext, neighbors.critical_layers.size()),
                        {"steps", "ms", "ms per step"});
    for (const auto& [steps, median] : seconds) {
      table.Row({absl::StrCat(steps), Milliseconds(median), Milliseconds(median / steps)});
      const std::vector<double>& many = losses.rbegin()->second;
      for (int i = 0; i <= steps; ++i) {
        Check(losses[steps].size() == size_t(steps) + 1 && std::abs(losses[steps][i] - many[i]) <= 1e-6 * many[i],
              absl::StrFormat("loss %d of %d steps is loss %d of %d", i, steps, i, many.size() - 1));
      }
    }
  }

  void SweepCriticalLayers() {
    std::map<int, ObjectiveSpec> neighbors;
    for (const int layers : flags_.critical_layers) neighbors[layers] = Prepare(Defaults::kNeighbors, layers);
    const auto seconds = Sweep(flags_.critical_layers, flags_.rounds, [&](int layers) {
      return Seconds([&] { Losses(neighbors[layers], Defaults::kSteps); });
    });
    MarkdownTable table(absl::StrFormat("One optimization, %d neighbors of %d tokens, %d steps:", Defaults::kNeighbors,
                                        Defaults::kContext, Defaults::kSteps),
                        {"critical layers", "ms", "ms more per layer than the row before"});
    auto before = seconds.end();
    for (auto row = seconds.begin(); row != seconds.end(); before = row++) {
      table.Row(
          {absl::StrCat(row->first), Milliseconds(row->second),
           before == seconds.end() ? "" : Milliseconds((row->second - before->second) / (row->first - before->first))});
    }
  }

  void SweepNeighbors() {
    std::map<int, ObjectiveSpec> neighbors;
    std::map<int, double> loss;  // At the start.
    for (const int count : flags_.neighbors) neighbors[count] = Prepare(count, Defaults::kCriticalLayers);
    const auto seconds = Sweep(flags_.neighbors, flags_.rounds, [&](int count) {
      return Seconds([&] { loss[count] = Losses(neighbors[count], Defaults::kSteps).front(); });
    });
    MarkdownTable table(
        absl::StrFormat("One optimization, neighbors of %d tokens, %d steps, last %d layers:", Defaults::kContext,
                        Defaults::kSteps, LastLayers(shape_, Defaults::kCriticalLayers).size()),
        {"neighbors", "ms", "ms per neighbor"});
    for (const auto& [count, median] : seconds) {
      table.Row({absl::StrCat(count), Milliseconds(median), Milliseconds(median / count)});
    }
    CheckThatNeighborsAreAveraged(neighbors.rbegin()->second, loss);
  }

  void CheckThatNeighborsAreAveraged(const ObjectiveSpec& all, const std::map<int, double>& loss) {
    double sum = 0;
    for (size_t i = 0; i < all.cases.size(); ++i) {
      ObjectiveSpec one = all;
      one.cases = {all.cases[i]};
      one.states = {all.states[i]};
      sum += Losses(one, 0).front();
      const double mean = sum / static_cast<double>(i + 1);
      const auto measured = loss.find(static_cast<int>(i + 1));
      if (measured == loss.end()) continue;
      Check(std::abs(measured->second - mean) <= 1e-5 * mean,
            absl::StrFormat("the loss of %d neighbors, %.9g, is the mean of each one's, %.9g", i + 1, measured->second,
                            mean));
    }
  }

  MoeModel& model_;
  const ModelShape& shape_;
  const Flags flags_;
  std::mt19937 random_{1};
  Pathway initial_;
  std::vector<NeighborCase> cases_;
  bool ok_ = true;
};

void AddFlags(CLI::App& app, Flags& flags) {
  app.add_option("folder", flags.model.folder, "model folder: config.json, *.safetensors")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--device", flags.model.device, "that computes")
      ->check(CLI::IsMember(std::vector<std::string>(std::begin(kDeviceNames), std::end(kDeviceNames))))
      ->capture_default_str();
  app.add_option("--dtype", flags.model.dtype, "of the weights")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--weights", flags.model.weights, "how the large matrices are held")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "int8", "int4"}))
      ->capture_default_str();
  app.add_option("--arithmetic", flags.model.arithmetic, "of products on the CPU")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--kv-cache-dtype", flags.model.kv_cache_dtype, "of keys and values")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--rounds", flags.rounds, "times that each size is measured")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "0: OMP_NUM_THREADS, else one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--loss", flags.loss, "of one-token answers over the vocabulary, or between two one-token choices")
      ->check(CLI::IsMember({"answer", "choices"}))
      ->capture_default_str();
  const auto sweep = [&app](const std::string& name, std::vector<int>& values, int most, const std::string& what) {
    app.add_option(name, values, what)->delimiter(',')->check(CLI::Range(1, most))->capture_default_str();
  };
  sweep("--prompt-tokens", flags.prompt_tokens, 1 << 20, "lengths; those beyond the context window are left out");
  sweep("--sequences", flags.sequences, 1024, "that decode together");
  sweep("--steps", flags.steps, 1000, "of an optimization");
  sweep("--critical-layers", flags.critical_layers, 1024, "the last so many; all of them are added, more left out");
  sweep("--neighbors", flags.neighbors, 1024, "of an optimization");
}

// Leaves out what the model does not have; adds all layers.
void FitToModel(const ModelShape& shape, Flags& flags) {
  const auto keep_up_to = [](std::vector<int>& values, int most) {
    values.erase(std::remove_if(values.begin(), values.end(), [&](int value) { return value > most; }), values.end());
  };
  keep_up_to(flags.prompt_tokens, shape.context_window);
  keep_up_to(flags.critical_layers, shape.moe_layers - 1);
  flags.critical_layers.push_back(shape.moe_layers);
  if (flags.prompt_tokens.empty() || shape.context_window <= Defaults::kContext) {
    OkOrExit(absl::InvalidArgumentError(
        absl::StrFormat("--prompt-tokens: the context window of %d tokens holds none of them, or not %d and one more",
                        shape.context_window, Defaults::kContext)));
  }
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("How prefill, decode and neighborhood gradient descent grow with their sizes");
  AddFlags(app, flags);
  CLI11_PARSE(app, argc, argv);
  SetComputeThreads(flags.threads);
  const auto model = ValueOrExit(MoeModel::Load(flags.model));
  const ModelShape& shape = model->shape();
  FitToModel(shape, flags);
  std::printf(
      "`%s`, %s on %s, arithmetic %s, KV cache %s: %d layers, %d of them MoE, %d experts, top-%d, hidden %d, "
      "vocabulary %d; %d "
      "threads, "
      "%d core experts, loss: %s, medians of %d rounds.\n",
      shape.name.c_str(), shape.dtype.c_str(), shape.device.c_str(), shape.arithmetic.c_str(),
      shape.kv_cache_dtype.c_str(), shape.layers, shape.moe_layers, shape.experts, shape.experts_per_token,
      shape.hidden_size, shape.vocabulary_size, cpu::ThreadPool::Shared().threads(),
      std::min(Defaults::kCoreExperts, shape.experts), flags.loss.c_str(), flags.rounds);
  return ScalingBench(*model, flags).Run() ? 0 : 1;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) { return c3po::Main(argc, argv); }
