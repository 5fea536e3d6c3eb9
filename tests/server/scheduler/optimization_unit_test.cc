#include "server/scheduler/optimization_unit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "tests/server/scheduler/scheduler_fakes.h"

namespace c3po {
namespace {

// Sequences that optimize side by side under a clock that only the work moves.
struct Optimizing {
  explicit Optimizing(int count) {
    for (int i = 0; i < count; ++i) {
      Wanted wanted{{10 + i}, 4, Routing(static_cast<float>(i + 1))};
      wanted.asks = true;
      alone.push_back(RunAlone(wanted)->tokens);
      sinks.push_back(std::make_shared<RecordingSink>());
      tasks.push_back(std::make_shared<AskingTask>(wanted.optimization_steps, *wanted.routing));
      cancelled.push_back(std::make_shared<std::atomic<bool>>(false));
      SequenceRequest request = MakeRequest(wanted, sinks.back());
      request.cancelled = cancelled.back();
      request.on_prefilled = [task = tasks.back()](const PromptCapture&, absl::Span<const float>)
          -> absl::StatusOr<std::shared_ptr<OptimizationTask>> { return task; };
      batcher.Add(std::move(request));
    }
  }
  void RunUntilPasses(size_t passes) {
    while (model.passes.size() < passes && batcher.Step()) {
    }
  }
  std::vector<size_t> PassSizes() const {
    std::vector<size_t> sizes;
    for (const auto& pass : model.passes) sizes.push_back(pass.size());
    return sizes;
  }

  HashModel model;
  ContinuousBatcher batcher{&model, BatcherLimits(), nullptr, [this] { return model.now; }};
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  std::vector<std::shared_ptr<AskingTask>> tasks;
  std::vector<std::shared_ptr<std::atomic<bool>>> cancelled;
  std::vector<std::vector<int32_t>> alone;  // tokens
};

TEST(OptimizationUnit, EvaluationsOfSeveralSequencesAreOnePass) {
  Optimizing run(4);
  run.RunUntilPasses(100);
  EXPECT_EQ(run.PassSizes(), (std::vector<size_t>{4, 4, 4}));
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(run.sinks[i]->tokens, run.alone[i]);
}

TEST(OptimizationUnit, APassOfEvaluationsKeepsToItsRowsAndEachTakesItsShareOfTheTime) {
  Optimizing run(3);
  run.model.per_evaluation = absl::Milliseconds(8);
  run.tasks[0]->objective.row_count = kEvaluationRowsMax / 4;
  run.tasks[1]->objective.row_count = kEvaluationRowsMax * 3 / 4;
  run.tasks[2]->objective.row_count = kEvaluationRowsMax * 2;
  run.RunUntilPasses(100);
  EXPECT_EQ(run.PassSizes(), (std::vector<size_t>{2, 1, 2, 1, 2, 1}));
  const double expected[] = {0.006, 0.018, 0.024};
  for (size_t i = 0; i < 3; ++i) EXPECT_NEAR(run.sinks[i]->timings.optimization_seconds, expected[i], 1e-9);
}

TEST(OptimizationUnit, ASequenceCancelledBetweenTwoPassesIsNotInTheNext) {
  Optimizing run(3);
  run.RunUntilPasses(1);
  *run.cancelled[1] = true;
  run.RunUntilPasses(100);
  EXPECT_EQ(run.PassSizes(), (std::vector<size_t>{3, 2, 2}));
  EXPECT_EQ(run.sinks[1]->status.code(), absl::StatusCode::kCancelled);
  for (size_t i : {0, 2}) EXPECT_EQ(run.sinks[i]->tokens, run.alone[i]);
}

TEST(OptimizationUnit, AnEvaluationThatFailsEndsItsSequenceAlone) {
  Optimizing run(3);
  run.tasks[1]->objective.fails_after = 2;
  run.RunUntilPasses(100);
  EXPECT_EQ(run.PassSizes(), (std::vector<size_t>{3, 3, 2}));
  EXPECT_EQ(run.sinks[1]->status.message(), "not finite");
  for (size_t i : {0, 2}) EXPECT_EQ(run.sinks[i]->tokens, run.alone[i]);
}

// Whatever waits for what, and however many rows it has: nobody waits for more units than there are sequences.
TEST(OptimizationUnit, EachSequenceHasItsTurn) {
  int64_t joint = 0;
  for (uint32_t seed = 1; seed <= 100; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    std::mt19937 rng(seed);
    std::vector<std::unique_ptr<Sequence>> running(1 + rng() % 9);
    for (auto& sequence : running) {
      sequence = std::make_unique<Sequence>();
      sequence->stage = rng() % 4 > 0 ? Sequence::Stage::kOptimizing : Sequence::Stage::kDecode;
      if (rng() % 3 == 0) {
        sequence->task = std::make_shared<CountdownTask>(1, nullptr);
      } else {
        const auto task = std::make_shared<AskingTask>(1, *Routing(1));
        task->objective.row_count = 1 + static_cast<int64_t>(rng() % (2 * kEvaluationRowsMax));
        ASSERT_FALSE(*task->Step());
        sequence->task = task;
      }
    }
    std::map<const Sequence*, int> waited;
    size_t next = rng() % running.size();
    for (int i = 0; i < 40; ++i) {
      const OptimizationUnit unit = NextOptimizationUnit(running, next);
      ASSERT_LT(next, running.size());
      int64_t rows = 0;
      for (const Evaluation& evaluation : unit.evaluations) rows += evaluation.objective->rows();
      if (unit.evaluations.size() > 1) {
        EXPECT_LE(rows, kEvaluationRowsMax);
      }
      EXPECT_EQ(unit.sequences.size(),
                unit.evaluations.empty() ? std::min<size_t>(1, unit.sequences.size()) : unit.evaluations.size());
      joint += unit.evaluations.size() > 1;
      for (const auto& sequence : running) {
        if (sequence->stage == Sequence::Stage::kOptimizing) ++waited[sequence.get()];
      }
      for (const Sequence* sequence : unit.sequences) {
        EXPECT_EQ(sequence->stage, Sequence::Stage::kOptimizing);
        waited[sequence] = 0;
      }
      for (const auto& [sequence, units] : waited) EXPECT_LT(units, static_cast<int>(running.size()));
    }
  }
  EXPECT_GT(joint, 100);
}

}  // namespace
}  // namespace c3po
