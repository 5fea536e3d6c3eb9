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
      request.on_prefilled = [task = tasks.back()](
                                 const PromptCapture&,
                                 const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> { return task; };
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
        ASSERT_FALSE(*task->Step(PiecewiseWork::kToTheEnd));
        sequence->task = task;
      }
      sequence->work_granted = true;
    }
    OptimizationUnits units;
    std::map<const Sequence*, int> waited;
    for (int i = 0; i < 40; ++i) {
      const OptimizationUnit* unit = units.Next(running);
      int64_t rows = 0;
      std::vector<const Sequence*> members;
      if (unit != nullptr) {
        for (const Evaluation& evaluation : unit->evaluations) rows += evaluation.objective->rows();
        if (unit->evaluations.size() > 1) {
          EXPECT_LE(rows, kEvaluationRowsMax);
        }
        EXPECT_EQ(unit->members.size(), std::max<size_t>(1, unit->evaluations.size()));
        joint += unit->evaluations.size() > 1;
        for (const OptimizationUnit::Member& member : unit->members) members.push_back(member.sequence);
      }
      for (const auto& sequence : running) {
        if (sequence->stage == Sequence::Stage::kOptimizing) ++waited[sequence.get()];
      }
      for (const Sequence* sequence : members) {
        if (sequence == nullptr) continue;
        EXPECT_EQ(sequence->stage, Sequence::Stage::kOptimizing);
        waited[sequence] = 0;
        if (rng() % 4 > 0) units.Leave(sequence);  // Else it stays begun, as though it was long.
      }
      for (const auto& [sequence, turns] : waited) EXPECT_LT(turns, static_cast<int>(running.size()));
    }
  }
  EXPECT_GT(joint, 100);
}

// Also where another caller's units take longer, so that its own sequences have most of the turns.
TEST(OptimizationUnit, TheSequencesOfACallerHaveTheirTurnsAlike) {
  absl::Time time = absl::UnixEpoch();
  std::vector<std::unique_ptr<Sequence>> running;
  std::map<const Sequence*, int> turns;
  for (const char* const caller : {"ann", "ben", "ann"}) {
    running.push_back(std::make_unique<Sequence>());
    Sequence& sequence = *running.back();
    sequence.request.caller = caller;
    sequence.stage = Sequence::Stage::kOptimizing;
    sequence.work_granted = true;
    const auto task = std::make_shared<CountdownTask>(1000, nullptr);
    task->on_step = [&, own = &sequence] {
      ++turns[own];
      time += own->request.caller == "ben" ? absl::Milliseconds(100) : absl::Milliseconds(1);
    };
    sequence.task = task;
  }
  HashModel model;
  OptimizationUnits units;
  for (int i = 0; i < 300; ++i) units.Advance(units.Next(running), 1, model, [&] { return time; });
  EXPECT_NEAR(turns[running[0].get()], turns[running[2].get()], 1);
  EXPECT_GT(turns[running[1].get()], 0);
}

// What it asked for is not evaluated any more: it may ask the same objective for something else meanwhile.
TEST(OptimizationUnit, AUnitBeginsAnewWithoutASequenceThatLeft) {
  std::vector<std::unique_ptr<Sequence>> running;
  std::vector<std::shared_ptr<AskingTask>> tasks;
  for (int i = 0; i < 3; ++i) {
    tasks.push_back(std::make_shared<AskingTask>(2, *Routing(1)));
    ASSERT_FALSE(*tasks.back()->Step(1));
    running.push_back(std::make_unique<Sequence>());
    running.back()->stage = Sequence::Stage::kOptimizing;
    running.back()->work_granted = true;
    running.back()->task = tasks.back();
  }
  HashModel model;
  OptimizationUnits units;
  const auto now = [] { return absl::UnixEpoch(); };
  OptimizationUnit* const begun = units.Next(running);
  ASSERT_EQ(begun->members.size(), 3u);
  EXPECT_TRUE(units.Advance(begun, 1, model, now).empty());
  units.Leave(running[1].get());
  running.erase(running.begin() + 1);
  OptimizationUnit* const rest = units.Next(running);
  EXPECT_EQ(units.begun(), 1u);
  const auto outcomes = units.Advance(rest, PiecewiseWork::kToTheEnd, model, now);
  ASSERT_EQ(outcomes.size(), 2u);
  EXPECT_EQ(outcomes[0].sequence, running[0].get());
  EXPECT_EQ(outcomes[1].sequence, running[1].get());
  ASSERT_EQ(model.passes.size(), 2u);
  EXPECT_EQ(model.passes[1], (std::vector<const NeighborhoodObjective*>{&tasks[0]->objective, &tasks[2]->objective}));
  EXPECT_EQ(units.begun(), 0u);
}

// Asks for the evaluations of two objectives at a time.
class TwofoldTask final : public OptimizationTask {
 public:
  explicit TwofoldTask(int rounds) : rounds_(rounds) { objectives[1].factor = 3; }
  absl::StatusOr<bool> Step(int64_t) override { return absl::InternalError("nothing else is to be done"); }
  std::vector<Evaluation> AskAll() const override {
    std::vector<Evaluation> both;
    for (const auto& objective : objectives) {
      both.push_back({const_cast<AskingTask::Objective*>(&objective), *Routing(2), /*want_gradient=*/false});
    }
    return both;
  }
  absl::StatusOr<bool> TellAll(absl::Span<const LossAndGradient> results, double) override {
    EXPECT_EQ(results.size(), 2u);
    losses = {results[0].loss, results[1].loss};
    return --rounds_ == 0;
  }
  std::shared_ptr<const RoutingOverride> routing() const override { return nullptr; }
  AskingTask::Objective objectives[2];
  std::vector<double> losses;

 private:
  int rounds_;
};

// They run in one pass with those of others, count as rows together, and each task hears of its own.
TEST(OptimizationUnit, ATaskMayAskForSeveralEvaluationsAtOnce) {
  std::vector<std::unique_ptr<Sequence>> running;
  const auto add = [&](std::shared_ptr<OptimizationTask> task) {
    running.push_back(std::make_unique<Sequence>());
    running.back()->stage = Sequence::Stage::kOptimizing;
    running.back()->work_granted = true;
    running.back()->task = std::move(task);
  };
  const auto one = std::make_shared<AskingTask>(2, *Routing(1));
  ASSERT_FALSE(*one->Step(1));
  const auto two = std::make_shared<TwofoldTask>(2), broken = std::make_shared<TwofoldTask>(2);
  broken->objectives[1].fails_after = 1;
  add(one);
  add(two);
  add(broken);
  HashModel model;
  OptimizationUnits units;
  const auto now = [] { return absl::UnixEpoch(); };
  OptimizationUnit* unit = units.Next(running);
  ASSERT_EQ(unit->members.size(), 3u);
  EXPECT_EQ(unit->evaluations.size(), 5u);
  EXPECT_EQ(unit->members[1].rows, 6);
  auto outcomes = units.Advance(unit, PiecewiseWork::kToTheEnd, model, now);
  ASSERT_EQ(outcomes.size(), 3u);
  EXPECT_FALSE(*outcomes[0].finished);
  EXPECT_FALSE(*outcomes[1].finished);
  EXPECT_EQ(two->losses, (std::vector<double>{1 * 2 + 1, 3 * 2 + 1}));
  EXPECT_EQ(outcomes[2].finished.status().message(), "not finite");
  running.pop_back();
  // One that leaves a unit that has begun takes both of its own along.
  unit = units.Next(running);
  ASSERT_EQ(unit->evaluations.size(), 3u);
  units.Leave(running[1].get());
  ASSERT_EQ(unit->evaluations.size(), 1u);
  EXPECT_EQ(unit->evaluations[0].objective, &one->objective);
  outcomes = units.Advance(unit, PiecewiseWork::kToTheEnd, model, now);
  ASSERT_EQ(outcomes.size(), 1u);
  EXPECT_TRUE(*outcomes[0].finished);
  // Beyond the rows of a pass, the first goes alone.
  one->objective.row_count = kEvaluationRowsMax - 5;
  two->objectives[0].row_count = 3;
  running[1]->turn = 1;
  EXPECT_EQ(units.Next(running)->evaluations.size(), 2u);
}

// A stream goes on between the parts of a long evaluation, a short one has its turns beside it, and what comes of both
// is what comes of each alone.
TEST(OptimizationUnit, ALongEvaluationIsCutAndOthersGoOnBetweenItsParts) {
  BatcherLimits limits;
  limits.prefill_tokens_per_step = 16;  // A full pass costs 32 row-layers.
  HashModel model;
  model.per_forward = absl::Milliseconds(10);
  model.per_evaluation = absl::Milliseconds(640);
  ContinuousBatcher batcher(&model, limits, nullptr, [&] { return model.now; });
  const Wanted stream{{1, 2}, 20000, nullptr};
  Wanted heavy{{3}, 4, Routing(2)}, light{{4}, 4, Routing(3)};
  heavy.asks = light.asks = true;
  heavy.rows = 640;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (const Wanted& wanted : {stream, heavy, light}) {
    sinks.push_back(std::make_shared<RecordingSink>());
    batcher.Add(MakeRequest(wanted, sinks.back()));
  }
  while (sinks[1]->finished_count == 0 && batcher.Step()) {
  }
  ASSERT_EQ(model.passes.size(), 6u);
  EXPECT_EQ(sinks[2]->finished_count, 1) << "the light one waited for the heavy one";
  ASSERT_GE(model.parts.size(), 3u * 1280 / 32);
  for (size_t i = 0; i < model.parts.size(); ++i) {
    EXPECT_LE(model.parts[i].row_layers, 32);
    if (i > 0) {
      EXPECT_GT(model.parts[i].forwards, model.parts[i - 1].forwards) << "two parts without a pass between them";
    }
  }
  batcher.AbortAll(absl::CancelledError("the test ends"));
  for (const size_t i : {1, 2}) EXPECT_EQ(sinks[i]->tokens, RunAlone(i == 1 ? heavy : light)->tokens);
}

TEST(OptimizationUnit, ASequenceCancelledAmidItsEvaluationLeavesAtTheNextStep) {
  Optimizing run(2);
  run.tasks[0]->objective.row_count = 100000;
  run.RunUntilPasses(1);
  const size_t parts = run.model.parts.size();
  ASSERT_EQ(run.sinks[0]->finished_count, 0);
  *run.cancelled[0] = true;
  while (run.batcher.Step()) {
  }
  EXPECT_EQ(run.sinks[0]->status.code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(run.sinks[1]->tokens, run.alone[1]);
  EXPECT_LE(run.model.parts.size(), parts + 4);
}

// What several optimizations hold together keeps to the limit; whoever came first goes first, and all are served.
TEST(OptimizationUnit, OptimizationsWaitUntilTheirMemoryFits) {
  BatcherLimits limits;
  limits.work_memory_bytes = 100;
  HashModel model;
  ContinuousBatcher batcher(&model, limits, nullptr, [&] { return model.now; });
  int64_t held = 0, most = 0;
  std::vector<int> order;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  const std::vector<int64_t> needs = {60, 60, 30, 400, 10, 10};
  for (size_t i = 0; i < needs.size(); ++i) {
    Wanted wanted{{10 + static_cast<int32_t>(i)}, 2, Routing(static_cast<float>(i + 1))};
    sinks.push_back(std::make_shared<RecordingSink>());
    SequenceRequest request = MakeRequest(wanted, sinks.back());
    request.on_prefilled = [&, i](const PromptCapture&,
                                  const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
      auto task = std::make_shared<CountdownTask>(5, Routing(static_cast<float>(i + 1)));
      task->bytes = needs[i];
      task->on_step = [&, i, steps = 0]() mutable {
        if (++steps == 1) {
          order.push_back(static_cast<int>(i));
          held += needs[i];
          most = std::max(most, needs[i] > 100 ? held - needs[i] : held);
        }
        if (steps == 5) held -= needs[i];
      };
      return task;
    };
    batcher.Add(std::move(request));
  }
  while (batcher.Step()) {
  }
  for (const auto& sink : sinks) EXPECT_TRUE(sink->status.ok()) << sink->status;
  EXPECT_LE(most, 100);
  ASSERT_EQ(order.size(), needs.size());
  EXPECT_EQ(order[0], 0);
  EXPECT_EQ(order[3], 3) << "who came after the large one went before it, or the large one did not go alone";
  EXPECT_EQ(held, 0);
}

}  // namespace
}  // namespace c3po
