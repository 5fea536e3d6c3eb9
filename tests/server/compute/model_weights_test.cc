#include "server/compute/model_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "tests/server/compute/opened_model.h"

namespace c3po {
namespace {

using testing::ElementsAre;

TEST(ModelWeights, ArePackedByLayersInTheOrderOfTheirNames) {
  const OpenedModel opened("olmoe_tiny");
  std::vector<int> layers;
  std::vector<std::pair<int, int>> told;
  PackEach(
      opened.config, opened.weights, [&](int done, int total) { told.emplace_back(done, total); },
      [&](const StoredWeight& stored) {
        if (stored.use.role == WeightRole::kQkv && stored.use.row == 0) layers.push_back(stored.use.layer);
        EXPECT_TRUE(stored.matrix.mapped);
      });
  EXPECT_THAT(layers, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(told, ElementsAre(std::pair(1, 4), std::pair(2, 4), std::pair(3, 4), std::pair(4, 4)));

  ModelConfig config = opened.config;
  ModelWeights twelve = opened.weights;
  config.layers = 12;
  config.moe_layers.clear();
  config.FillDerived();
  for (int l = 4; l < 12; ++l) {
    twelve.layers.push_back(opened.weights.layers[0]);
    for (StoredWeight& stored : twelve.layers.back()) stored.use.layer = l;
  }
  layers.clear();
  PackEach(config, twelve, nullptr, [&](const StoredWeight& stored) {
    if (stored.use.role == WeightRole::kRouter) layers.push_back(stored.use.layer);
  });
  EXPECT_THAT(layers, ElementsAre(0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9));
}

TEST(ModelWeights, OfAnotherConfigurationAreRefusedBeforeAnythingIsPacked) {
  const OpenedModel opened("olmoe_tiny");
  const auto pack = [&](const ModelConfig& config, const ModelWeights& weights) {
    PackEach(config, weights, nullptr, [](const StoredWeight&) { ADD_FAILURE() << "packed"; });
  };
  ModelConfig wider = opened.config;
  wider.vocabulary_size += 1;
  EXPECT_THROW(pack(wider, opened.weights), std::invalid_argument);
  ModelConfig deeper = opened.config;
  deeper.layers += 1;
  EXPECT_THROW(pack(deeper, opened.weights), std::invalid_argument);
  for (const auto& change : std::vector<std::function<void(ModelWeights&)>>{
           [](ModelWeights& w) { w.outside.pop_back(); }, [](ModelWeights& w) { w.layers[2].pop_back(); },
           [](ModelWeights& w) { w.layers[2].push_back(w.layers[2].back()); },
           [](ModelWeights& w) { w.layers[1][0].use.layer = 2; }, [](ModelWeights& w) { w.layers[1][0].use.row = 1; },
           [](ModelWeights& w) { w.layers[1][0].use.column = -1; }}) {
    ModelWeights changed = opened.weights;
    change(changed);
    EXPECT_THROW(pack(opened.config, changed), std::invalid_argument);
  }
}

}  // namespace
}  // namespace c3po
