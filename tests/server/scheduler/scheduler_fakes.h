#ifndef C3PO_TESTS_SERVER_SCHEDULER_SCHEDULER_FAKES_H_
#define C3PO_TESTS_SERVER_SCHEDULER_SCHEDULER_FAKES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "server/sampling/readout.h"
#include "server/scheduler/continuous_batcher.h"
#include "tests/server/partial_model.h"

namespace c3po {

inline constexpr int kVocabulary = 50;
inline constexpr int32_t kEndToken = 49;

// A model whose next token is a hash of every token before it and of the routing of its row, so that any mix-up of
// sequences, positions or pathways shows in the tokens.
class HashModel final : public PartialModel {
 public:
  explicit HashModel(int64_t slots = 1 << 15) : states_(slots) {
    shape_.vocabulary_size = kVocabulary;
    shape_.eos_token_ids = {kEndToken};
    shape_.experts = 4;
    shape_.moe_layers = shape_.layers = 2;
    shape_.hidden_size = 1;
    shape_.context_window = 4096;
  }
  absl::Status Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) override {
    ++forwards;
    now += per_forward;
    if (!fail_with.ok()) return fail_with;
    outputs.clear();
    int64_t rows = 0;
    std::set<int64_t> written;
    for (const Segment& segment : segments) {
      rows += static_cast<int64_t>(segment.tokens.size());
      const std::vector<int64_t> slots = SlotsOfPositions(segment.kv);
      const RoutingOverride* const routing = RoutingOf(segment);
      EXPECT_GE(slots.size(), segment.start + segment.tokens.size()) << "no slots";
      uint64_t h = segment.start == 0 ? 1469598103934665603ull : states_.at(slots[segment.start - 1]);
      SegmentOutput output;
      bool nonsense = false;
      for (size_t r = 0; r < segment.tokens.size(); ++r) {
        const int position = segment.start + static_cast<int>(r);
        h = (h ^ static_cast<uint64_t>(segment.tokens[r] + 1)) * 1099511628211ull;
        if (routing && position >= segment.override_start && position < segment.override_end) {
          h = (h ^ static_cast<uint64_t>(routing->values.weights[0] * 1000)) * 1099511628211ull;
        }
        states_.at(slots[position]) = h;
        if (r < segment.row_readouts.size()) {
          std::vector<float> of_row(kVocabulary, segment.tokens[r] == bad_token ? std::nanf("") : 0);
          if (segment.tokens[r] != bad_token) of_row[(h >> 17) % (kVocabulary - 1)] = 1;
          ReadOut(of_row, segment.row_readouts[r], output.row_readouts.emplace_back());
        }
        EXPECT_TRUE(written.insert(slots[position]).second) << "two rows of a pass write one slot";
        if (!segment.targets.empty()) output.target_logprobs.push_back(-static_cast<float>((h >> 20) % 100));
        // No number from this token on; of one pass only.
        nonsense = nonsense || segment.tokens[r] == bad_token || (routing && routing->values.weights[0] == kBadWeight);
        if (nonsense && !segment.targets.empty()) output.target_logprobs.back() = std::nanf("");
      }
      std::vector<float> logits(kVocabulary, nonsense ? std::nanf("") : 0);
      if (!nonsense) logits[(h >> 17) % (kVocabulary - 1)] = 1;
      if (segment.readout.wanted()) ReadOut(logits, segment.readout, output.readout);
      output.capture.pathway = Pathway(2, 4);
      output.capture.entry = std::make_shared<EntryState>();
      outputs.push_back(std::move(output));
    }
    most_rows = std::max(most_rows, rows);
    return absl::OkStatus();
  }

  std::unique_ptr<EvaluationRun> NewEvaluationRun(std::vector<Evaluation> evaluations) override {
    passes.emplace_back();
    for (const Evaluation& evaluation : evaluations) passes.back().push_back(evaluation.objective);
    return std::make_unique<InPieces>(*this, std::move(evaluations));
  }

  // An evaluation costs its rows in each of two layers; its results come with the last piece.
  class InPieces final : public EvaluationRun {
   public:
    InPieces(HashModel& model, std::vector<Evaluation> evaluations) : model_(model), inner_(evaluations) {
      for (const Evaluation& evaluation : evaluations) all_ += 2 * evaluation.objective->rows();
      left_ = all_;
    }
    absl::StatusOr<bool> Advance(int64_t row_layers) override {
      const int64_t part = std::min(left_, row_layers);
      model_.parts.push_back({part, model_.forwards});
      model_.now += model_.per_evaluation * (static_cast<double>(part) / static_cast<double>(all_));
      left_ -= part;
      return left_ > 0 ? false : inner_.Advance(kToTheEnd);
    }
    int64_t spent() const override { return all_ - left_; }
    std::vector<absl::StatusOr<LossAndGradient>> TakeResults() override { return inner_.TakeResults(); }

   private:
    HashModel& model_;
    SeparateEvaluations inner_;
    int64_t all_ = 0, left_ = 0;
  };

  int forwards = 0;
  std::vector<std::vector<const NeighborhoodObjective*>> passes;  // of evaluations
  struct Part {
    int64_t row_layers;
    int forwards;  // passes before it
  };
  std::vector<Part> parts;  // of evaluations
  absl::Duration per_evaluation;
  absl::Time now = absl::UnixEpoch();  // a clock that only the work moves
  absl::Duration per_forward;
  int64_t most_rows = 0;
  absl::Status fail_with;
  int32_t bad_token = -1;                      // gives NaN
  static constexpr float kBadWeight = 987654;  // of a routing that gives NaN

 private:
  static std::vector<int64_t> SlotsOfPositions(const KvBlocks& kv) {
    constexpr int64_t kPositions = KvBlockPool::kPositions;
    std::vector<int64_t> slots;
    for (int64_t p = 0; p < kv.beginning_positions; ++p) {
      slots.push_back(kv.beginning.at(static_cast<size_t>(p / kPositions)) * kPositions + p % kPositions);
    }
    for (const int32_t block : kv.blocks) {
      for (int64_t i = 0; i < kPositions; ++i) slots.push_back(block * kPositions + i);
    }
    return slots;
  }

  std::vector<uint64_t> states_;  // per slot: the hash of everything up to its position
};

class RecordingSink final : public SequenceSink {
 public:
  explicit RecordingSink(int stop_after = 1 << 30) : stop_after_(stop_after) {}
  bool OnToken(const SampledToken& token) override {
    tokens.push_back(token.token_id);
    return static_cast<int>(tokens.size()) < stop_after_;
  }
  void OnPrompt(std::vector<SampledToken> p) override {
    EXPECT_TRUE(prompt.empty() && tokens.empty());
    prompt = std::move(p);
  }
  void OnScores(std::vector<ContinuationScore> s) override { scores = std::move(s); }
  void OnFinished(const absl::Status& s, FinishReason r, const SequenceTimings& t) override {
    EXPECT_EQ(finished_count, 0);
    ++finished_count;
    timings = t;
    status = s;
    reason = r;
    done.Notify();
  }
  std::vector<int32_t> tokens;
  std::vector<SampledToken> prompt;  // with log-probabilities, where they were asked for
  std::vector<ContinuationScore> scores;
  int finished_count = 0;
  absl::Status status;
  FinishReason reason = FinishReason::kStop;
  SequenceTimings timings;
  absl::Notification done;

 private:
  const int stop_after_;
};

// Finds its routing in `steps` steps.
class CountdownTask final : public OptimizationTask {
 public:
  CountdownTask(int steps, std::shared_ptr<const RoutingOverride> routing, absl::Status error = absl::OkStatus())
      : steps_(steps), routing_(std::move(routing)), error_(std::move(error)) {}
  absl::StatusOr<bool> Step(int64_t) override {
    if (!error_.ok()) return error_;
    if (on_step) on_step();
    return --steps_ == 0;
  }
  std::shared_ptr<const RoutingOverride> routing() const override { return routing_; }
  bool AcceptAnswer(double) override {
    ++trials;
    return accepts;
  }
  bool AcceptScores(absl::Span<const ContinuationScore>) override {
    ++trials;
    return accepts;
  }
  int64_t memory_bytes() const override { return bytes; }
  bool accepts = true;
  int trials = 0;
  int64_t bytes = 0;
  std::function<void()> on_step;

 private:
  int steps_;
  const std::shared_ptr<const RoutingOverride> routing_;
  const absl::Status error_;
};

inline std::shared_ptr<RoutingOverride> Routing(float value) {
  auto routing = std::make_shared<RoutingOverride>();
  routing->layers = {1};
  routing->values = Pathway(1, 4);
  routing->values.weights[0] = value;
  return routing;
}

// Prepares something, then takes `steps` evaluations of an objective of its own; the routing found depends on every
// loss that it was told.
class AskingTask final : public OptimizationTask {
 public:
  AskingTask(int steps, const RoutingOverride& start) : steps_(steps), routing_(start) {
    objective.factor = 1.5 + std::fmod(start.values.weights[0], 7);
  }
  absl::StatusOr<bool> Step(int64_t) override {
    EXPECT_FALSE(prepared_) << "a step where an evaluation was asked for";
    prepared_ = true;
    return false;
  }
  std::optional<Evaluation> Ask() const override {
    if (!prepared_) return std::nullopt;
    return Evaluation{const_cast<Objective*>(&objective), routing_, true};
  }
  absl::StatusOr<bool> Tell(const LossAndGradient& result, double seconds) override {
    EXPECT_GE(seconds, 0);
    EXPECT_EQ(result.gradient.weights, routing_.values.weights);
    routing_.values.weights[0] = static_cast<float>(result.loss);
    return --steps_ == 0;
  }
  std::shared_ptr<const RoutingOverride> routing() const override {
    return std::make_shared<RoutingOverride>(routing_);
  }
  bool AcceptAnswer(double) override { return accepts; }
  bool AcceptScores(absl::Span<const ContinuationScore>) override { return accepts; }

  class Objective final : public NeighborhoodObjective {
   public:
    absl::StatusOr<double> Evaluate(const RoutingOverride& routing, Pathway* gradient) override {
      if (--fails_after == 0) return absl::InternalError("not finite");
      if (gradient) *gradient = routing.values;
      return std::fmod(factor * routing.values.weights[0] + 1, 11);
    }
    int64_t rows() const override { return row_count; }
    double factor = 1;
    int fails_after = 0;  // evaluations; 0: never
    int64_t row_count = 3;
  };
  Objective objective;
  bool accepts = true;

 private:
  bool prepared_ = false;
  int steps_;
  RoutingOverride routing_;
};

struct Wanted {
  std::vector<int32_t> prompt;
  int max_tokens = 8;
  std::shared_ptr<const RoutingOverride> routing;
  ApplicationRule rule = ApplicationRule::kEveryNewToken;
  int optimization_steps = 3;
  bool accepts = true;  // what the pathway gave
  std::vector<std::vector<int32_t>> continuations = {};
  bool asks = false;  // an AskingTask, from `routing` on; else a CountdownTask
  int64_t rows = 3;   // of its objective
  int prompt_positions = 1;
};

inline SequenceRequest MakeRequest(const Wanted& wanted, std::shared_ptr<SequenceSink> sink) {
  SequenceRequest request;
  request.prompt = wanted.prompt;
  request.sampling.max_tokens = wanted.max_tokens;
  request.rule = wanted.rule;
  request.prompt_positions = wanted.prompt_positions;
  request.continuations = wanted.continuations;
  request.entry_layer = 1;
  request.sink = std::move(sink);
  if (wanted.routing) {
    request.on_prefilled = [wanted](const PromptCapture&,
                                    const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
      if (wanted.asks) {
        auto task = std::make_shared<AskingTask>(wanted.optimization_steps, *wanted.routing);
        task->objective.row_count = wanted.rows;
        task->accepts = wanted.accepts;
        return task;
      }
      auto task = std::make_shared<CountdownTask>(wanted.optimization_steps, wanted.routing);
      task->accepts = wanted.accepts;
      return task;
    };
  }
  return request;
}

inline std::shared_ptr<RecordingSink> RunAlone(const Wanted& wanted) {
  HashModel model;
  ContinuousBatcher batcher(&model, BatcherLimits(), nullptr);
  auto sink = std::make_shared<RecordingSink>();
  batcher.Add(MakeRequest(wanted, sink));
  while (batcher.Step()) {
  }
  EXPECT_TRUE(sink->status.ok()) << sink->status;
  EXPECT_EQ(batcher.kv_tokens_used(), 0);
  return sink;
}

inline std::vector<std::vector<float>> LogprobsOf(const RecordingSink& sink) {
  std::vector<std::vector<float>> logprobs;
  for (const ContinuationScore& score : sink.scores) logprobs.push_back(score.token_logprobs);
  return logprobs;
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_SCHEDULER_SCHEDULER_FAKES_H_
