// The table of marks: what decode, prefill, descent, single products of 16, 8 and 4 bits a weight, and the index take
// on a GPU, beside the floors that the bandwidth measured in the same run sets, in one Markdown table on stdout.
//   gpu_marks [--tiny] [--model-only | --index-only] [--graph-seconds N (default 25)]
// The model has OLMoE-1B-7B's shape and made-up bfloat16 weights: how long a step takes depends on its bytes, and on
// which experts rows choose, which is random here. --tiny: all of it on a small shape and collection, as the tests do.
//
// A floor is the bytes that the work must read at least, over the bandwidth of a copy on the device: weights once, of
// as many different experts a layer as R independent rows choose on average, E (1 - (1 - k/E)^R), keys and values once.
// Exit code 1: something failed or came out wrong. A mark that was missed is no failure.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/compute/cuda/cuda_backend.h"
#include "server/model/moe_model.h"
#include "server/pathway/pathway_optimizer.h"
#include "tests/bench/model_work.h"
#include "tests/bench/timing.h"
#include "tests/bench/value_or_exit.h"
#include "tests/gpu/index_marks.h"
#include "tests/gpu/made_up_model.h"
#include "tests/gpu/marks_device.h"
#include "tests/gpu/marks_table.h"
#include "tests/gpu/product_marks.h"
#include "tests/server/pathway/one_unit.h"

namespace c3po {
namespace {

struct Options {
  bool tiny = false, model = true, index = true;
  double graph_seconds = 25;
};

void Check(cuda::Error error, const char* what) {
  if (error != nullptr) Fail(absl::StrCat("device cuda: ", what, ": ", error));
}

// Bytes read and written a second by a copy from one place of the device's memory to another.
double CopyBandwidth(cuda::Runtime& runtime, int64_t bytes) {
  void *from = nullptr, *to = nullptr;
  cuda::Stream stream = nullptr;
  cuda::Event begin = nullptr, end = nullptr;
  Check(runtime.Allocate(bytes, &from), "allocating memory");
  Check(runtime.Allocate(bytes, &to), "allocating memory");
  Check(runtime.NewStream(&stream), "making a stream");
  Check(runtime.NewEvent(&begin, true), "making an event");
  Check(runtime.NewEvent(&end, true), "making an event");
  Check(runtime.Fill(stream, from, 1, bytes), "filling memory");
  std::vector<double> seconds;
  for (int round = 0; round < 8; ++round) {
    Check(runtime.Record(stream, begin), "recording an event");
    Check(runtime.CopyOnDevice(stream, to, from, bytes), "copying on the device");
    Check(runtime.Record(stream, end), "recording an event");
    Check(runtime.Synchronize(stream), "waiting");
    float milliseconds = 0;
    Check(runtime.Milliseconds(begin, end, &milliseconds), "taking the time");
    if (round > 1) seconds.push_back(milliseconds / 1e3);
  }
  Check(runtime.DeleteEvent(begin), "deleting an event");
  Check(runtime.DeleteEvent(end), "deleting an event");
  Check(runtime.DeleteStream(stream), "deleting a stream");
  Check(runtime.Free(from), "freeing memory");
  Check(runtime.Free(to), "freeing memory");
  return 2.0 * static_cast<double>(bytes) / std::max(Median(seconds), 1e-9);
}

struct ModelSizes {
  ModelConfig config;
  std::vector<int> decode_rows;
  int context = 0;  // positions of each sequence before its first decode step
  int decode_steps = 0;
  std::vector<int> prefills;
  int neighbor_tokens = 0;
  int critical_layers = 5;
  int steps = 10;
  int rounds = 5;
};

ModelSizes SizesOf(bool tiny) {
  ModelSizes sizes;
  sizes.config = OlmoeShape(tiny);
  if (tiny) {
    sizes.decode_rows = {1, 3};
    sizes.context = 5;
    sizes.decode_steps = 4;
    sizes.prefills = {9, 20};
    sizes.neighbor_tokens = 6;
    sizes.critical_layers = 2;
    sizes.steps = 2;
    sizes.rounds = 1;
  } else {
    sizes.decode_rows = {1, 8, 32, 64};
    sizes.context = 128;
    sizes.decode_steps = 40;
    sizes.prefills = {64, 1024};
    sizes.neighbor_tokens = 64;
  }
  return sizes;
}

// The bytes that a pass reads at least, of a model without shared experts, dense layers and latent attention.
class Floors {
 public:
  explicit Floors(const ModelConfig& config) : c_(config) {}

  double Experts(double rows) const {
    return c_.experts * (1 - std::pow(1 - static_cast<double>(c_.experts_per_token) / c_.experts, rows));
  }
  double Attention() const { return 2.0 * c_.hidden_size * (2.0 * c_.heads + 2.0 * c_.kv_heads) * c_.head_dim; }
  double FeedForward(double rows) const {
    return 4.0 * c_.experts * c_.hidden_size + Experts(rows) * 6.0 * c_.intermediate_size * c_.hidden_size;
  }
  double Head() const { return 2.0 * c_.vocabulary_size * c_.hidden_size; }
  // Of one position in all layers.
  double Cache() const { return 4.0 * c_.layers * c_.kv_heads * c_.head_dim; }

  double Pass(double rows, double cached_positions) const {
    return c_.layers * (Attention() + FeedForward(rows)) + Head() + cached_positions * Cache();
  }
  // One step there and back through `layers` critical layers, the first of which was remembered, and the head.
  double DescentStep(double rows, int layers) const {
    return 2 * ((layers - 1) * (Attention() + FeedForward(rows)) + Head());
  }

 private:
  const ModelConfig c_;
};

class ModelMarks {
 public:
  ModelMarks(const MarksDevice& device, const ModelSizes& sizes, MarksTable& table)
      : sizes_(sizes), floors_(sizes.config), table_(table) {
    auto backend = std::make_unique<cuda::CudaBackend>(sizes.config, MadeUpWeights(sizes.config),
                                                       ElementType::kBfloat16, PlainRopeTable(sizes.config),
                                                       cuda::CudaDevice{device.runtime, device.model_kernels, nullptr});
    model_ = MoeModel::OnBackend(sizes.config, std::move(backend), int64_t{4} << 30);
    const int longest = *std::max_element(sizes.prefills.begin(), sizes.prefills.end());
    const int rows = *std::max_element(sizes.decode_rows.begin(), sizes.decode_rows.end());
    blocks_each_ = BlocksOf(sizes.context + sizes.decode_steps);
    OkOrExit(model_->AllocateKvCache(
        {std::max<int64_t>({int64_t{rows} * blocks_each_, BlocksOf(longest), sizes.neighbor_tokens}), kBlock}));
  }

  void Decode(int rows, double mark_ms) {
    std::vector<std::vector<int32_t>> blocks(static_cast<size_t>(rows));
    for (int s = 0; s < rows; ++s) {
      for (int b = 0; b < blocks_each_; ++b) blocks[size_t(s)].push_back(s * blocks_each_ + b);
      Run({Part(blocks[size_t(s)], 0, RandomTokens(random_, sizes_.context, sizes_.config.vocabulary_size))});
    }
    std::vector<double> seconds;
    for (int step = 0; step < sizes_.decode_steps; ++step) {
      std::vector<Sequence> parts;
      for (int s = 0; s < rows; ++s) {
        parts.push_back(
            Part(blocks[size_t(s)], sizes_.context + step, RandomTokens(random_, 1, sizes_.config.vocabulary_size)));
      }
      const double taken = Seconds([&] { Run(parts); });
      if (4 * step >= sizes_.decode_steps) seconds.push_back(taken);  // The first ones are recorded.
    }
    const double cached = rows * (sizes_.context + sizes_.decode_steps * 0.625);
    table_.Row(absl::StrCat("decode step of ", rows, rows == 1 ? " sequence" : " sequences"), seconds,
               floors_.Pass(rows, cached), mark_ms);
  }

  void Prefill(int tokens, double mark_ms) {
    std::vector<int32_t> blocks;
    for (int b = 0; b < BlocksOf(tokens); ++b) blocks.push_back(b);
    std::vector<double> seconds;
    for (int round = 0; round <= sizes_.rounds; ++round) {
      const std::vector<Sequence> parts = {
          Part(blocks, 0, RandomTokens(random_, tokens, sizes_.config.vocabulary_size))};
      const double taken = Seconds([&] { Run(parts); });
      if (round > 0) seconds.push_back(taken);
    }
    table_.Row(absl::StrCat("prefill of ", tokens, " tokens"), seconds, floors_.Pass(tokens, 0), mark_ms);
  }

  // From the making of the objective to the last step, of three neighbors whose answers have so many tokens.
  void Descent(int answer_tokens, ApplicationRule rule, double mark_ms) {
    const std::vector<int> layers = LastLayers(model_->shape(), sizes_.critical_layers);
    const Pathway initial =
        PathwayOf(*model_, RandomTokens(random_, sizes_.neighbor_tokens, sizes_.config.vocabulary_size));
    std::vector<double> seconds;
    int64_t rows = 0;
    for (int round = 0; round <= sizes_.rounds; ++round) {
      ObjectiveSpec spec = PrepareNeighbors(
          *model_,
          RandomNeighbors(random_, {3, sizes_.neighbor_tokens, 1, answer_tokens}, sizes_.config.vocabulary_size),
          layers, SurrogateLoss::kAnswer);
      spec.rule = rule;
      const double taken = Seconds([&] { rows = Descend(spec, initial); });
      if (round > 0) seconds.push_back(taken);
    }
    // Weights are one pathway for all rows, so that these choose the same experts.
    const bool shifts = rule == ApplicationRule::kRouterShift;
    table_.Row(
        absl::StrCat(sizes_.steps, " steps, 3 neighbors, ", rows, " rows, ", shifts ? "shifts" : "weights"), seconds,
        sizes_.steps * floors_.DescentStep(shifts ? static_cast<double>(rows) : 1, static_cast<int>(layers.size())),
        mark_ms);
  }

 private:
  static constexpr int kBlock = 16;
  static int BlocksOf(int positions) { return (positions + kBlock - 1) / kBlock; }

  struct Sequence {
    absl::Span<const int32_t> blocks;
    int start = 0;
    std::vector<int32_t> tokens;
  };
  static Sequence Part(const std::vector<int32_t>& blocks, int start, std::vector<int32_t> tokens) {
    return {blocks, start, std::move(tokens)};
  }

  // One pass, of which each sequence's likeliest next token is read.
  void Run(const std::vector<Sequence>& parts) {
    segments_.clear();
    for (const Sequence& part : parts) {
      Segment segment;
      segment.kv.blocks = part.blocks;
      segment.start = part.start;
      segment.tokens = part.tokens;
      segment.readout.distribution = true;
      segments_.push_back(segment);
    }
    OkOrExit(model_->Forward(segments_, outputs_));
    for (const SegmentOutput& output : outputs_) OkOrExit(output.readout.status);
  }

  int64_t Descend(const ObjectiveSpec& spec, const Pathway& initial) {
    const auto objective = ValueOrExit(model_->NewObjective(spec));
    OptimizationProblem problem;
    problem.critical_layers = spec.critical_layers;
    problem.initial = initial.Rows(spec.critical_layers);
    problem.rule = spec.rule;
    problem.objective = objective.get();
    const auto optimizer = ValueOrExit(MakeGradientDescent(problem, {sizes_.steps, 0.1, StepRule::kAdam}));
    while (!ValueOrExit(OneUnit(*optimizer))) {
    }
    for (const double loss : optimizer->losses()) {
      if (!std::isfinite(loss)) Fail("a loss is not finite");
    }
    return objective->rows();
  }

  const ModelSizes sizes_;
  const Floors floors_;
  MarksTable& table_;
  std::unique_ptr<MoeModel> model_;
  int blocks_each_ = 0;
  std::mt19937 random_{2};
  std::vector<Segment> segments_;
  std::vector<SegmentOutput> outputs_;
};

void MeasureModel(const MarksDevice& device, bool tiny, MarksTable& table) {
  const ModelSizes sizes = SizesOf(tiny);
  ModelMarks marks(device, sizes, table);
  const double decode_marks[] = {1.0, 3.0, 4.5, 5.0}, prefill_marks[] = {6, 12};
  for (size_t i = 0; i < sizes.decode_rows.size(); ++i) marks.Decode(sizes.decode_rows[i], decode_marks[i]);
  for (size_t i = 0; i < sizes.prefills.size(); ++i) marks.Prefill(sizes.prefills[i], prefill_marks[i]);
  marks.Descent(1, ApplicationRule::kRouterShift, 12);
  marks.Descent(1, ApplicationRule::kEveryNewToken, 8);
  marks.Descent(tiny ? 3 : 12, ApplicationRule::kRouterShift, 26);
}

Options Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--tiny") {
      options.tiny = true;
    } else if (argument == "--model-only") {
      options.index = false;
    } else if (argument == "--index-only") {
      options.model = false;
    } else if (argument == "--graph-seconds" && i + 1 < argc && std::atof(argv[i + 1]) > 0) {
      options.graph_seconds = std::atof(argv[++i]);
    } else {
      std::fprintf(stderr, "usage: gpu_marks [--tiny] [--model-only | --index-only] [--graph-seconds N]\n");
      std::exit(2);
    }
  }
  return options;
}

int Main(int argc, char** argv) {
  const Options options = Parse(argc, argv);
  std::string why;
  const MarksDevice device = OpenMarksDevice(&why);
  if (device.runtime == nullptr) {
    std::fprintf(stderr, "%s\n", why.c_str());
    return 1;
  }
  cuda::DeviceProperties properties;
  Check(device.runtime->Properties(&properties), "asking for its properties");
  const double bandwidth = CopyBandwidth(*device.runtime, options.tiny ? 1 << 20 : 1 << 30);
  if (device.has_times) {
    std::printf("%s: copies %.2f TB/s. Floors are bytes over this. Marks are those of %.1f TB/s, scaled to it.\n",
                properties.name, bandwidth / 1e12, kMarksBandwidth / 1e12);
  }
  MarksTable table(device.has_times, bandwidth,
                   absl::StrCat(options.tiny ? "A small model" : "OLMoE-1B-7B's shape", " in bfloat16, contexts of ",
                                SizesOf(options.tiny).context, " positions; vectors of the index one query at a time"));
  if (options.model) {
    MeasureModel(device, options.tiny, table);
    MeasureProducts(device, options.tiny, table);
  }
  if (options.index) MeasureIndex(device, options.tiny, options.graph_seconds, table);
  return 0;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) {
  try {
    return c3po::Main(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "gpu_marks: %s\n", error.what());
    return 1;
  }
}
