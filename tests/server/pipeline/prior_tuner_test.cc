#include "server/pipeline/prior_tuner.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/server/partial_model.h"

namespace c3po {
namespace {

// A model whose loss on a case is 1/2 ||shift - target||^2 / size, the target told by the case's first prompt token,
// and which gets a case right when its loss is below 0.02.
class BowlModel final : public PartialModel {
 public:
  BowlModel() {
    shape_.digest = "bowl";
    shape_.experts = 4;
    shape_.moe_layers = shape_.layers = 3;
  }
  absl::StatusOr<std::unique_ptr<NeighborPreparation>> NewPreparation(const NeighborCase&, const MovingPart&) override {
    ++prepared;
    return std::make_unique<KnownNeighbor>(std::make_shared<NeighborState>());
  }
  absl::StatusOr<std::unique_ptr<NeighborhoodObjective>> NewObjective(const ObjectiveSpec& spec) override {
    EXPECT_EQ(spec.cases.size(), spec.states.size());
    largest_batch = std::max(largest_batch, spec.cases.size());
    return std::make_unique<Bowl>(spec);
  }
  int prepared = 0;
  size_t largest_batch = 0;

 private:
  class Bowl final : public NeighborhoodObjective {
   public:
    explicit Bowl(const ObjectiveSpec& spec) {
      for (const NeighborCase& c : spec.cases) targets_.push_back(c.prompt.front() / 10.0);
    }
    absl::StatusOr<double> Evaluate(const RoutingOverride& routing, Pathway* gradient) override {
      EXPECT_EQ(routing.kind, RoutingOverride::Kind::kLogitShift);
      const std::vector<float>& shift = routing.values.weights;
      if (gradient) *gradient = Pathway(routing.values.layers, routing.values.experts);
      double total = 0;
      correct_ = 0;
      for (double target : targets_) {
        double loss = 0;
        for (size_t i = 0; i < shift.size(); ++i) {
          const double difference = shift[i] - target;
          loss += difference * difference / 2 / double(shift.size());
          if (gradient)
            gradient->weights[i] += static_cast<float>(difference / double(shift.size()) / double(targets_.size()));
        }
        correct_ += loss < 0.02;
        total += loss / double(targets_.size());
      }
      return total;
    }
    int64_t correct_choices() const override { return correct_; }

   private:
    std::vector<double> targets_;
    int64_t correct_ = 0;
  };
};

std::vector<NeighborCase> Cases(std::vector<int> tenths) {
  std::vector<NeighborCase> cases;
  for (int t : tenths) cases.push_back({"", {t}, {{1}, {2}}, 0, 1});
  return cases;
}

absl::StatusOr<bool> OneUnit(PriorTuner& tuner) {
  const std::optional<Evaluation> wanted = tuner.Ask();
  if (!wanted) return tuner.Step(PiecewiseWork::kToTheEnd);
  const absl::StatusOr<LossAndGradient> result = wanted->Run();
  return result.ok() ? tuner.Tell(*result, 0) : result.status();
}

void RunToEnd(PriorTuner& tuner) {
  for (int i = 0; i < 100000; ++i) {
    const auto finished = OneUnit(tuner);
    ASSERT_TRUE(finished.ok()) << finished.status();
    if (*finished) return;
  }
  FAIL() << "did not finish";
}

PriorTunerOptions Options() {
  PriorTunerOptions options;
  options.critical_layers = {0, 2};
  options.epochs = 40;
  options.batch_size = 4;
  options.learning_rate = 0.05;
  options.patience = 40;
  return options;
}

TEST(PriorTuner, FindsTheShiftThatTheReferencesShare) {
  BowlModel model;
  std::vector<PriorTuner::Epoch> epochs;
  PriorTuner tuner(&model, Cases({9, 10, 11, 9, 10, 11, 10, 10, 9, 11}), Cases({10, 10, 10}), Options(),
                   [&](const PriorTuner::Epoch& epoch) { epochs.push_back(epoch); });
  RunToEnd(tuner);
  ASSERT_EQ(epochs.size(), 41u);
  EXPECT_NEAR(epochs[0].validation_loss, 0.5, 1e-6);
  EXPECT_EQ(epochs[0].validation_accuracy, 0);
  EXPECT_LE(model.largest_batch, 4u);
  const auto prior = tuner.result();
  ASSERT_TRUE(prior.has_value());
  for (float value : prior->routing.values.weights) EXPECT_NEAR(value, 1.0, 0.1);
  EXPECT_EQ(prior->routing.layers, (std::vector<int>{0, 2}));
  EXPECT_EQ(prior->references, 10);
  EXPECT_EQ(prior->validation_references, 3);
  EXPECT_LT(prior->validation_loss_after, 0.01);
  EXPECT_EQ(prior->validation_accuracy_after, 1);
  EXPECT_EQ(prior->model_digest, "bowl");
}

TEST(PriorTuner, StopsEarlyAndKeepsTheEpochThatHeldApartReferencesLikedBest) {
  BowlModel model;
  std::vector<PriorTuner::Epoch> epochs;
  PriorTunerOptions options = Options();
  options.patience = 2;
  PriorTuner tuner(&model, Cases({20, 20, 20, 20}), Cases({5, 5}), options,
                   [&](const PriorTuner::Epoch& epoch) { epochs.push_back(epoch); });
  RunToEnd(tuner);
  EXPECT_LT(epochs.size(), 20u);
  const auto prior = tuner.result();
  ASSERT_TRUE(prior.has_value());
  for (float value : prior->routing.values.weights) EXPECT_NEAR(value, 0.5, 0.06);
}

TEST(PriorTuner, LearnsNothingWhereTheSetsDisagree) {
  BowlModel model;
  std::vector<PriorTuner::Epoch> epochs;
  PriorTunerOptions options = Options();
  options.patience = 1;
  PriorTuner tuner(&model, Cases({10, 10}), Cases({-10}), options,
                   [&](const PriorTuner::Epoch& epoch) { epochs.push_back(epoch); });
  RunToEnd(tuner);
  EXPECT_EQ(epochs.size(), 2u);
  EXPECT_FALSE(tuner.result().has_value());
}

TEST(PriorTuner, SameSeedSameShift) {
  std::vector<float> shifts[2];
  for (auto& shift : shifts) {
    BowlModel model;
    PriorTuner tuner(&model, Cases({1, 2, 3, 4, 5, 6, 7, 8, 9}), Cases({5}), Options(),
                     [](const PriorTuner::Epoch&) {});
    while (!*OneUnit(tuner)) {
    }
    shift = tuner.result()->routing.values.weights;
  }
  EXPECT_EQ(shifts[0], shifts[1]);
}

}  // namespace
}  // namespace c3po
