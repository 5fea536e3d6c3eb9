#include "server/pipeline/neighborhood_fit.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tests/server/partial_model.h"

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
