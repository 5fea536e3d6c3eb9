#include "server/pipeline/neighborhood_fit.h"

#include <gtest/gtest.h>

#include <string>
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
