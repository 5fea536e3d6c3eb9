#include "server/pipeline/neighborhood_fit.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/partial_model.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

class EmptyState final : public NeighborState {};

// Every other neighbor is known. The others take three pieces.
class AlternatingModel final : public PartialModel {
 public:
  absl::StatusOr<std::unique_ptr<NeighborPreparation>> NewPreparation(const NeighborCase&, const MovingPart&) override {
    if (begun_++ % 2 == 0) return std::unique_ptr<NeighborPreparation>(std::make_unique<ThreePieces>(*this));
    return std::unique_ptr<NeighborPreparation>(std::make_unique<KnownNeighbor>(std::make_shared<EmptyState>()));
  }
  int64_t neighbor_cache_bytes() const override { return 1000 + pieces_; }

 private:
  class ThreePieces final : public NeighborPreparation {
   public:
    explicit ThreePieces(AlternatingModel& model) : model_(model) {}
    absl::StatusOr<bool> Advance(int64_t) override {
      ++model_.pieces_;
      return ++done_ == 3;
    }
    int64_t spent() const override { return done_; }
    bool hit() const override { return false; }
    std::shared_ptr<const NeighborState> state() const override { return std::make_shared<EmptyState>(); }

   private:
    AlternatingModel& model_;
    int done_ = 0;
  };

  int begun_ = 0, pieces_ = 0;
};

NeighborCase OneCase() { return {"a", {1, 2}, {{3}}, 0, 1}; }

TEST(NeighborhoodFit, CountsEachNeighborOnceAsWhatItsPreparationSays) {
  AlternatingModel model;
  Metrics metrics("model", "0");
  OptimizationSettings settings;
  settings.critical_layers = {0};
  SearchWork work;
  std::vector<int> units;
  for (int i = 0; i < 5; ++i) {
    NeighborhoodFit fit(&model, &metrics);
    fit.TakeOracle(settings, OneCase());
    for (units.push_back(0); !fit.prepared(); ++units.back()) ASSERT_TRUE(fit.Prepare(1, work).ok());
  }
  EXPECT_EQ(units, (std::vector<int>{3, 1, 3, 1, 3}));
  EXPECT_EQ(work.prepared_cases, 5);
  const std::string text = metrics.PrometheusText();
  const auto has = [&](const std::string& line) { return text.find("\n" + line + "\n") != std::string::npos; };
  EXPECT_TRUE(has("c3po_neighbor_cache_hits_total 2")) << text;
  EXPECT_TRUE(has("c3po_neighbor_cache_misses_total 3"));
  EXPECT_TRUE(has("c3po_neighbor_cache_bytes 1009"));
}

// Makes all states that it is asked for by one pass of three pieces; those of the last neighbor by another one.
class OnePassModel final : public PartialModel {
 public:
  absl::StatusOr<std::vector<std::unique_ptr<NeighborPreparation>>> NewPreparations(
      absl::Span<const NeighborCase> neighbors, const MovingPart&) override {
    begun.push_back(neighbors.size());
    const auto pass = std::make_shared<int>(3), last = std::make_shared<int>(3);
    std::vector<std::unique_ptr<NeighborPreparation>> preparations;
    for (size_t i = 0; i < neighbors.size(); ++i) {
      preparations.push_back(std::make_unique<Shared>(i + 1 < neighbors.size() ? pass : last));
    }
    return preparations;
  }
  std::vector<size_t> begun;

 private:
  class Shared final : public NeighborPreparation {
   public:
    explicit Shared(std::shared_ptr<int> left) : left_(std::move(left)) {}
    absl::StatusOr<bool> Advance(int64_t row_layers) override {
      for (const int64_t before = spent_; *left_ > 0 && spent_ - before < row_layers; ++spent_) --*left_;
      return *left_ == 0;
    }
    int64_t spent() const override { return spent_; }
    bool hit() const override { return false; }
    std::shared_ptr<const NeighborState> state() const override { return std::make_shared<EmptyState>(); }

   private:
    const std::shared_ptr<int> left_;
    int64_t spent_ = 0;
  };
};

// A call ends with all that one pass made. Another pass is another call's, so that no call costs two parts.
TEST(CasePreparations, BeginTogetherAndEndWithTheirPass) {
  OnePassModel model;
  CasePreparations preparations;
  const std::vector<NeighborCase> cases(4, OneCase());
  ASSERT_TRUE(preparations.Begin(model, cases, {}).ok());
  EXPECT_EQ(model.begun, std::vector<size_t>{4});
  std::vector<std::shared_ptr<const NeighborState>> states;
  std::vector<size_t> whole;
  while (preparations.begun()) {
    ASSERT_TRUE(preparations.Advance(2, states).ok());
    whole.push_back(states.size());
  }
  EXPECT_EQ(whole, (std::vector<size_t>{0, 3, 3, 4}));
}

// Keeps what objectives are made of; their losses are over as many pairs as cases answer otherwise than the first one.
class SpecModel final : public PartialModel {
 public:
  absl::StatusOr<std::unique_ptr<NeighborPreparation>> NewPreparation(const NeighborCase&, const MovingPart&) override {
    return std::make_unique<KnownNeighbor>(std::make_shared<EmptyState>());
  }
  absl::StatusOr<std::unique_ptr<NeighborhoodObjective>> NewObjective(const ObjectiveSpec& spec) override {
    specs.push_back(spec);
    int64_t pairs = spec.loss == SurrogateLoss::kPairs ? 0 : -1;
    for (const NeighborCase& one : spec.cases) pairs += pairs >= 0 && one.gold != spec.cases[0].gold;
    return std::make_unique<Paired>(pairs);
  }
  std::vector<ObjectiveSpec> specs;

 private:
  class Paired final : public NeighborhoodObjective {
   public:
    explicit Paired(int64_t pairs) : pairs_(pairs) {}
    absl::StatusOr<double> Evaluate(const RoutingOverride&, Pathway*) override { return 1.0; }
    int64_t pairs() const override { return pairs_; }

   private:
    const int64_t pairs_;
  };
};

WeightedReference Labeled(const std::string& answer) {
  auto record = std::make_shared<ReferenceRecord>();
  record->id = answer;
  record->sample.prompt = "It was a film";
  record->sample.answer = answer;
  record->sample.choices = {" bad", " good"};
  return {record, 0.1, 0.5};
}

class PairedFit : public testing::Test {
 protected:
  // What the objectives over neighbors with these answers warn of.
  std::string Warning(const std::vector<std::string>& fitted, const std::vector<std::string>& held_out) {
    Neighborhood neighborhood;
    for (const std::string& answer : fitted) neighborhood.fitted.push_back(Labeled(answer));
    for (const std::string& answer : held_out) neighborhood.held_out.push_back(Labeled(answer));
    const std::shared_ptr<const Tokenizer> tokenizer = *Tokenizer::Load(GoldenPath("byte_level.json"));
    const PromptText text(tokenizer, absl::FailedPreconditionError("no chat"), 4096, tokenizer->vocabulary_size());
    settings_.critical_layers = {0};
    model_.specs.clear();
    NeighborhoodFit fit(&model_, nullptr);
    EXPECT_TRUE(fit.TakeNeighbors(settings_, neighborhood, text).ok());
    SearchWork work;
    while (!fit.prepared()) EXPECT_TRUE(fit.Prepare(1, work).ok());
    EXPECT_TRUE(fit.MakeObjectives().ok());
    return fit.PairWarning();
  }

  SpecModel model_;
  OptimizationSettings settings_;
};

TEST_F(PairedFit, WarnsWhereNoTwoNeighborsMakeAPair) {
  settings_.objective = SurrogateLoss::kPairs;
  EXPECT_EQ(Warning({" good", " bad"}, {" bad", " good"}), "");
  EXPECT_EQ(Warning({" good", " bad"}, {}), "");
  const std::string why = ": no two of them have the same choices and different answers";
  EXPECT_EQ(Warning({" good", " good", " good"}, {" bad", " good"}),
            "the objective PAIRS was CHOICES for the 3 neighbors" + why);
  EXPECT_EQ(Warning({" good", " bad"}, {" bad", " bad"}),
            "the objective PAIRS was CHOICES for the 2 held-out neighbors" + why);
  EXPECT_EQ(Warning({" good", " good"}, {" bad"}),
            "the objective PAIRS was CHOICES for the 2 neighbors and the 1 held-out neighbor" + why);
  settings_.objective = SurrogateLoss::kChoices;
  EXPECT_EQ(Warning({" good", " good"}, {" bad"}), "");
}

// Choices come along with the texts by which neighbors are compared.
TEST_F(PairedFit, NeighborsHaveTheirChoicesAndTexts) {
  settings_.objective = SurrogateLoss::kPairs;
  Warning({" good"}, {});
  ASSERT_EQ(model_.specs.size(), 1u);
  EXPECT_EQ(model_.specs[0].loss, SurrogateLoss::kPairs);
  const NeighborCase& neighbor = model_.specs[0].cases[0];
  EXPECT_EQ(neighbor.texts, (std::vector<std::string>{" bad", " good"}));
  EXPECT_EQ(neighbor.continuations.size(), 2u);
  EXPECT_EQ(neighbor.gold, 1);
  settings_.objective = SurrogateLoss::kAnswer;
  Warning({" good"}, {});
  EXPECT_EQ(model_.specs[0].cases[0].texts, std::vector<std::string>{" good"});
}

// What descends is held; what judges, and what does not descend, is not.
TEST_F(PairedFit, TrustIsOfTheFittedNeighborsOfADescent) {
  settings_.trust = 2.5;
  const auto weights = [&](Method method) {
    settings_.method = method;
    Warning({" good", " bad"}, {" bad", " good"});
    return std::pair(model_.specs.at(0).trust, model_.specs.at(1).trust);
  };
  EXPECT_EQ(weights(Method::kNeighborhoodGradientDescent), std::pair(2.5, 0.0));
  EXPECT_EQ(weights(Method::kKernelRegression), std::pair(0.0, 0.0));
  EXPECT_EQ(weights(Method::kModeFinding), std::pair(0.0, 0.0));
  settings_.method = Method::kOracle;
  NeighborhoodFit fit(&model_, nullptr);
  fit.TakeOracle(settings_, OneCase());
  SearchWork work;
  while (!fit.prepared()) ASSERT_TRUE(fit.Prepare(1, work).ok());
  ASSERT_TRUE(fit.MakeObjectives().ok());
  EXPECT_EQ(model_.specs.back().trust, 2.5);
}

// Metrics are not for everybody.
TEST(NeighborhoodFit, PreparesWithoutMetrics) {
  AlternatingModel model;
  OptimizationSettings settings;
  settings.critical_layers = {0};
  NeighborhoodFit fit(&model, nullptr);
  fit.TakeOracle(settings, OneCase());
  SearchWork work;
  while (!fit.prepared()) ASSERT_TRUE(fit.Prepare(1, work).ok());
  EXPECT_EQ(work.prepared_cases, 1);
}

}  // namespace
}  // namespace c3po
