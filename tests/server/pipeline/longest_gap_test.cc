// Beside any valid request a running stream waits for a bounded amount of work between two of its tokens. It is counted
// in row-layers that the model runs, not in seconds.

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <random>
#include <utility>
#include <vector>

#include "server/pipeline/prior_tuner.h"
#include "server/pipeline/shift_amortizer.h"
#include "server/scheduler/continuous_batcher.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {
namespace {

constexpr int kPassTokens = 96;
constexpr int kOrdinarySteps = 4;

// Passes everything on, and adds up what it costs.
class CountingModel final : public ModelRunner {
 public:
  explicit CountingModel(std::unique_ptr<MoeModel> model) : model_(std::move(model)) {}

  int64_t spent = 0;
  int64_t spent_on_neighbors = 0;  // Of these.
  int objectives = 0;              // Made.

  const ModelShape& shape() const override { return model_->shape(); }
  const MoeModel& model() const { return *model_; }
  absl::Status AllocateKvCache(const KvCacheShape& cache) override { return model_->AllocateKvCache(cache); }
  absl::StatusOr<std::shared_ptr<const PlacedRouting>> PlaceRouting(const RoutingOverride& routing) override {
    return model_->PlaceRouting(routing);
  }
  absl::Status Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) override {
    for (const Segment& segment : segments) {
      const int below = segment.resume ? model_->config().moe_layers[static_cast<size_t>(segment.entry_layer)] : 0;
      spent += static_cast<int64_t>(segment.tokens.size()) * (shape().layers - below);
    }
    return model_->Forward(segments, outputs);
  }
  absl::StatusOr<std::unique_ptr<NeighborPreparation>> NewPreparation(const NeighborCase& neighbor,
                                                                      const MovingPart& moving) override {
    auto preparation = model_->NewPreparation(neighbor, moving);
    if (!preparation.ok()) return preparation.status();
    return std::unique_ptr<NeighborPreparation>(std::make_unique<CountedPreparation>(*std::move(preparation), *this));
  }
  absl::StatusOr<std::vector<std::unique_ptr<NeighborPreparation>>> NewPreparations(
      absl::Span<const NeighborCase> neighbors, const MovingPart& moving) override {
    auto preparations = model_->NewPreparations(neighbors, moving);
    if (!preparations.ok()) return preparations.status();
    for (auto& one : *preparations) one = std::make_unique<CountedPreparation>(std::move(one), *this);
    return preparations;
  }
  int64_t neighbor_cache_bytes() const override { return model_->neighbor_cache_bytes(); }
  absl::StatusOr<std::unique_ptr<NeighborhoodObjective>> NewObjective(const ObjectiveSpec& spec) override {
    auto objective = model_->NewObjective(spec);
    if (!objective.ok()) return objective.status();
    ++objectives;
    spent += (*objective)->rows();  // Attention and the shared expert of one layer.
    return objective;
  }
  std::unique_ptr<EvaluationRun> NewEvaluationRun(std::vector<Evaluation> evaluations) override {
    return std::make_unique<CountedRun>(model_->NewEvaluationRun(std::move(evaluations)), spent);
  }

 private:
  static absl::StatusOr<bool> Advance(PiecewiseWork& work, int64_t row_layers, int64_t& spent) {
    const int64_t before = work.spent();
    absl::StatusOr<bool> done = work.Advance(row_layers);
    spent += work.spent() - before;
    return done;
  }
  class CountedPreparation final : public NeighborPreparation {
   public:
    CountedPreparation(std::unique_ptr<NeighborPreparation> work, CountingModel& model)
        : work_(std::move(work)), model_(model) {}
    absl::StatusOr<bool> Advance(int64_t n) override {
      const int64_t before = model_.spent;
      const absl::StatusOr<bool> done = CountingModel::Advance(*work_, n, model_.spent);
      model_.spent_on_neighbors += model_.spent - before;
      return done;
    }
    int64_t spent() const override { return work_->spent(); }
    bool hit() const override { return work_->hit(); }
    std::shared_ptr<const NeighborState> state() const override { return work_->state(); }

   private:
    const std::unique_ptr<NeighborPreparation> work_;
    CountingModel& model_;
  };
  class CountedRun final : public EvaluationRun {
   public:
    CountedRun(std::unique_ptr<EvaluationRun> work, int64_t& spent) : work_(std::move(work)), spent_(spent) {}
    absl::StatusOr<bool> Advance(int64_t n) override { return CountingModel::Advance(*work_, n, spent_); }
    int64_t spent() const override { return work_->spent(); }
    std::vector<absl::StatusOr<LossAndGradient>> TakeResults() override { return work_->TakeResults(); }

   private:
    const std::unique_ptr<EvaluationRun> work_;
    int64_t& spent_;
  };

  const std::unique_ptr<MoeModel> model_;
};

// A stream that notes what was spent between two of its tokens.
class StreamSink final : public SequenceSink {
 public:
  explicit StreamSink(const CountingModel& model) : model_(model) {}
  bool OnToken(const SampledToken&) override {
    if (tokens++ > 0) longest_gap = std::max(longest_gap, model_.spent - last_);
    last_ = model_.spent;
    return true;
  }
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnFinished(const absl::Status& s, FinishReason, const SequenceTimings&) override {
    status = s;
    ended = true;
  }

  int tokens = 0;
  bool ended = false;
  int64_t longest_gap = 0;
  absl::Status status;

 private:
  const CountingModel& model_;
  int64_t last_ = 0;
};

class EndSink final : public SequenceSink {
 public:
  explicit EndSink(int& left) : left_(left) { ++left_; }
  bool OnToken(const SampledToken&) override { return true; }
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnFinished(const absl::Status& status, FinishReason, const SequenceTimings&) override {
    EXPECT_TRUE(status.ok()) << status;
    --left_;
  }

 private:
  int& left_;
};

// Requests as heavy as they may be: long prompts, continuations, neighbors, many positions and layers.
class Hostile {
 public:
  Hostile(uint32_t seed, CountingModel& model) : rng_(seed), model_(model) {}

  SequenceRequest Make(int& left) {
    SequenceRequest request;
    request.sink = std::make_shared<EndSink>(left);
    request.prompt = Tokens(Window() / 2);
    switch (rng_() % 4) {
      case 0:
        request.sampling.max_tokens = 1 + static_cast<int>(rng_() % 20);
        request.sampling.ignore_eos = true;
        return request;
      case 1:
        for (uint32_t c = 0; c <= rng_() % 3; ++c) request.continuations.push_back(Tokens(Window() / 2));
        return request;
      case 2:
        return WithTask(std::move(request), Tuner());
      default:
        return WithTask(std::move(request), Amortizer());
    }
  }

  std::shared_ptr<OptimizationTask> Tuner() {
    PriorTunerOptions options;
    options.critical_layers = Layers();
    options.epochs = 1;
    options.batch_size = 1 + static_cast<int>(rng_() % 3);
    options.prompt_positions = 1 + static_cast<int>(rng_() % 32);
    return std::make_shared<PriorTuner>(&model_, Cases(3), Cases(1), options, [](const PriorTuner::Epoch&) {});
  }
  std::shared_ptr<OptimizationTask> Amortizer() {
    OptimizationSettings settings;
    settings.critical_layers = Layers();
    settings.steps = 2;
    settings.prompt_positions = 1 + static_cast<int>(rng_() % 60);
    std::vector<ShiftAmortizer::Reference> references;
    for (NeighborCase& neighbor : Cases(2))
      references.push_back(
          {std::move(neighbor), RandomPathway(rng_, model_.shape().moe_layers, model_.shape().experts)});
    return std::make_shared<ShiftAmortizer>(&model_, std::move(references), settings,
                                            [](ReferenceShift) { return absl::OkStatus(); });
  }

 private:
  int Window() const { return model_.shape().context_window; }
  std::vector<int32_t> Tokens(int count_max) {
    return RandomTokens(rng_, 1 + static_cast<int>(rng_() % count_max), model_.shape().vocabulary_size);
  }
  NeighborCase Case() { return {"a", Tokens(Window() / 2), {Tokens(Window() / 2), Tokens(Window() / 2)}, 0, 1}; }
  std::vector<NeighborCase> Cases(int count) {
    std::vector<NeighborCase> cases;
    for (int i = 0; i < count; ++i) cases.push_back(Case());
    return cases;
  }
  std::vector<int> Layers() { return rng_() % 2 == 0 ? std::vector<int>{0, 1, 2, 3} : std::vector<int>{2, 3}; }

  static SequenceRequest WithTask(SequenceRequest request, std::shared_ptr<OptimizationTask> task) {
    request.continuations = {{1}};
    request.on_prefilled = [task](const PromptCapture&,
                                  const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> { return task; };
    return request;
  }

  std::mt19937 rng_;
  CountingModel& model_;
};

TEST(LongestGap, BesideAnyValidRequestIsFourOrdinarySteps) {
  int64_t heaviest = 0;
  for (uint32_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    CountingModel model(LoadTiny("olmoe_tiny"));
    ASSERT_TRUE(model.AllocateKvCache(KvBlockPool::CacheOf(4096)).ok());
    BatcherLimits limits;
    limits.kv_tokens_max = 4096;
    limits.prefill_tokens_per_step = kPassTokens;
    // By what was spent, so that the shares of time are those of the work.
    ContinuousBatcher batcher(&model, limits, nullptr,
                              [&] { return absl::UnixEpoch() + absl::Microseconds(model.spent); });
    const auto stream = std::make_shared<StreamSink>(model);
    SequenceRequest request;
    request.prompt = {1, 2, 3};
    request.sampling.max_tokens = model.shape().context_window - 4;
    request.sampling.ignore_eos = true;
    request.sink = stream;
    batcher.Add(std::move(request));
    Hostile hostile(seed, model);
    int left = 0;
    for (int i = 0; i < 12; ++i) batcher.Add(hostile.Make(left));
    while (left > 0 && stream->status.ok() && !stream->ended && batcher.Step()) {
    }
    ASSERT_GT(stream->tokens, 10);
    EXPECT_LE(stream->longest_gap, int64_t{kOrdinarySteps} * kPassTokens * model.shape().layers);
    heaviest = std::max(heaviest, stream->longest_gap);
    batcher.AbortAll(absl::OkStatus());
  }
  EXPECT_GT(heaviest, int64_t{kPassTokens} * 4) << "nothing heavy ran beside the stream";
}

// Making an objective costs up to a layer of its rows, and is not cut: it is a unit by itself, not the end of one that
// has spent its budget already.
TEST(LongestGap, AnObjectiveIsMadeInAStepOfItsOwn) {
  for (uint32_t seed = 1; seed <= 2; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    CountingModel model(LoadTiny("olmoe_tiny"));
    Hostile hostile(seed, model);
    for (const auto& task : {hostile.Tuner(), hostile.Amortizer()}) {
      const int before = model.objectives;
      bool finished = false;
      for (int64_t budget = 1; !finished; budget = budget % 700 + 90) {
        const int64_t on_neighbors = model.spent_on_neighbors;
        const int objectives = model.objectives;
        if (const std::optional<Evaluation> asked = task->Ask()) {
          finished = *task->Tell(*model.EvaluateTogether({*asked}).front(), 0);
        } else {
          finished = *task->Step(budget);
        }
        const int made = model.objectives - objectives;
        EXPECT_LE(made, 1);
        EXPECT_TRUE(made == 0 || model.spent_on_neighbors == on_neighbors);
      }
      EXPECT_GT(model.objectives - before, 1);
    }
  }
}

}  // namespace
}  // namespace c3po
