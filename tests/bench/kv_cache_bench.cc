// What keys and values in bfloat16 save where they are many: decode steps at long contexts, with a cache of float32 and
// one of bfloat16, in turn, as a ratio of the same run.
//   c3po_bench_kv_cache FOLDER [--rounds 5] [--threads 0] [--dtype auto] [--arithmetic auto] [--contexts 256,1024,4096]
//                       [--sequences 1,8]
// Every sequence has slots of its own, filled by prefill. No time decides the exit status; what must hold does: the
// cache of bfloat16 takes half of the bytes, and a sequence's logits do not depend on how many decode beside it.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/compute/cpu/thread_pool.h"
#include "server/compute/device.h"
#include "tests/bench/markdown_table.h"
#include "tests/bench/model_work.h"
#include "tests/bench/timing.h"
#include "tests/bench/value_or_exit.h"

namespace c3po {
namespace {

constexpr int kDecodeSteps = 8;      // Of each round; a round's time is their median.
constexpr int kPrefillTokens = 256;  // In one pass.
constexpr const char* kTypes[] = {"float32", "bfloat16"};

struct Flags {
  MoeModelOptions model;
  int rounds = 5;
  int threads = 0;
  std::vector<int> contexts = {256, 1024, 4096};
  std::vector<int> sequences = {1, 8};
};

int Largest(const std::vector<int>& values) { return *std::max_element(values.begin(), values.end()); }

class KvCacheBench {
 public:
  explicit KvCacheBench(const Flags& flags) : flags_(flags), slots_(Largest(flags.contexts) + 1) {
    for (const char* type : kTypes) {
      MoeModelOptions options = flags.model;
      options.kv_cache_dtype = type;
      models_.push_back(ValueOrExit(MoeModel::Load(options)));
      OkOrExit(models_.back()->AllocateKvCache(SlotsOf(int64_t{slots_} * Largest(flags.sequences))));
    }
  }

  // Whether all checks held.
  bool Run() {
    PrintHead();
    for (const auto& model : models_) Fill(*model);
    MarkdownTable table("One decode step, by the cache's type:",
                        {"sequences", "context", "keys and values in float32", "float32 ms", "bfloat16 ms", "ratio"});
    for (const int sequences : flags_.sequences) {
      for (const int context : flags_.contexts) {
        std::vector<double> seconds[2];
        for (int round = 0; round <= flags_.rounds; ++round) {
          for (int i = 0; i < 2; ++i) {
            const double time = StepSeconds(*models_[i], sequences, context);
            if (round > 0) seconds[i].push_back(time);  // The first one warms up.
          }
        }
        const double wide = Median(seconds[0]), narrow = Median(seconds[1]);
        const auto bytes = static_cast<double>(models_[0]->backend().KvCacheBytes({context, 1})) * sequences;
        table.Row({absl::StrCat(sequences), absl::StrCat(context), absl::StrFormat("%.1f MB", bytes / 1e6),
                   absl::StrFormat("%.2f", wide * 1e3), absl::StrFormat("%.2f", narrow * 1e3),
                   absl::StrFormat("%.2f", wide / narrow)});
      }
    }
    return ChecksHold();
  }

 private:
  void PrintHead() const {
    const ModelShape& shape = models_[0]->shape();
    std::printf("`%s`, %s on %s, arithmetic %s: %d layers, hidden %d; %d threads, medians of %d rounds.\n",
                shape.name.c_str(), shape.dtype.c_str(), shape.device.c_str(), shape.arithmetic.c_str(), shape.layers,
                shape.hidden_size, cpu::ThreadPool::Shared().threads(), flags_.rounds);
  }

  // Prompts as long as the longest context, other ones of each sequence, the same in both models.
  void Fill(MoeModel& model) const {
    std::mt19937 random(1);
    for (int s = 0; s < Largest(flags_.sequences); ++s) {
      for (int begin = 0; begin + 1 < slots_; begin += kPrefillTokens) {
        const int count = std::min(kPrefillTokens, slots_ - 1 - begin);
        Forward(model, {Tokens(s, begin, RandomTokens(random, count, model.shape().vocabulary_size))});
      }
    }
  }

  OwnedSegment Tokens(int sequence, int start, std::vector<int32_t> tokens) const {
    return SequenceTokens(int64_t{sequence} * slots_, slots_, start, std::move(tokens));
  }
  static std::vector<SegmentOutput> Forward(MoeModel& model, const std::vector<OwnedSegment>& segments) {
    return ValueOrExit(RunSegments(model, segments));
  }
  std::vector<OwnedSegment> Step(int sequences, int context) const {
    std::vector<OwnedSegment> segments;
    for (int s = 0; s < sequences; ++s) segments.push_back(Tokens(s, context, {3 + s}));
    return segments;
  }
  double StepSeconds(MoeModel& model, int sequences, int context) const {
    const std::vector<OwnedSegment> segments = Step(sequences, context);
    std::vector<double> times;
    for (int i = 0; i < kDecodeSteps; ++i) times.push_back(Seconds([&] { Forward(model, segments); }));
    return Median(times);
  }

  bool ChecksHold() const {
    bool hold = true;
    const auto check = [&hold](bool holds, const std::string& what) {
      if (!holds) std::fprintf(stderr, "does not hold: %s\n", what.c_str());
      hold = hold && holds;
    };
    check(models_[0]->kv_cache_bytes() == 2 * models_[1]->kv_cache_bytes(), "bfloat16 takes half of the bytes");
    const std::vector<OwnedSegment> segments = Step(Largest(flags_.sequences), flags_.contexts.front());
    for (const auto& model : models_) {
      const std::vector<float> alone = Forward(*model, {segments.front()}).front().readout.logits;
      check(Forward(*model, segments).front().readout.logits == alone, "logits alone are those in a batch");
    }
    return hold;
  }

  const Flags flags_;
  const int slots_;  // of a sequence
  std::vector<std::unique_ptr<MoeModel>> models_;
};

int Main(int argc, char** argv) {
  Flags flags;
  flags.model.arithmetic = "auto";
  CLI::App app("Decode steps at long contexts, with a cache of float32 and one of bfloat16");
  app.add_option("folder", flags.model.folder, "model folder: config.json, *.safetensors")
      ->required()
      ->check(CLI::ExistingDirectory);
  app.add_option("--dtype", flags.model.dtype, "of the weights")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--arithmetic", flags.model.arithmetic, "of products")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option("--rounds", flags.rounds, "times that each size is measured")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--threads", flags.threads, "0: OMP_NUM_THREADS, else one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--contexts", flags.contexts, "tokens before the decoded one")
      ->delimiter(',')
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--sequences", flags.sequences, "that decode together")
      ->delimiter(',')
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  SetComputeThreads(flags.threads);
  return KvCacheBench(flags).Run() ? 0 : 1;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) { return c3po::Main(argc, argv); }
