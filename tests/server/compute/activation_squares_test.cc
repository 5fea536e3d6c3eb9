// Mean squares of activations, against sums in double; which expert's they are; and that scales chosen by them have the
// smaller error.

#include "server/compute/cpu/activation_squares.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "server/compute/cpu/cpu_weights.h"
#include "tests/server/compute/opened_model.h"

namespace c3po {
namespace {

using cpu::ActivationSquares;
using testing::ElementsAre;
using testing::IsEmpty;

TEST(ActivationSquares, AreMeansOfEachColumnOverTheRowsThatAProductNames) {
  ActivationSquares::OfMatrix sums(1, 2);
  EXPECT_THAT(sums.Means(0), IsEmpty());
  const float x[] = {1, 2, 99, 3, -4, 99, 5, 6, 99};
  const int64_t index[] = {2, 0};
  sums.Observe({x, 3, 2, index}, 2, 0);  // (5, 6) and (1, 2)
  EXPECT_THAT(sums.Means(0), ElementsAre(13, 20));
  sums.Observe({x + 3, 3, 1, nullptr}, 2, cpu::kAllUnits);  // (3, -4)
  EXPECT_THAT(sums.Means(0), ElementsAre(35.0f / 3, 56.0f / 3));
  EXPECT_EQ(sums.rows(0), 3);
}

TEST(ActivationSquares, OfAnExpertThatNoRowReachedAreThoseOfAllRows) {
  ActivationSquares::OfMatrix sums(3, 2);
  const float x[] = {1, 2, 3, 4};
  sums.Observe({x, 2, 2, nullptr}, 2, 0);
  sums.Observe({x, 2, 1, nullptr}, 2, 2);
  EXPECT_THAT(sums.Means(0), ElementsAre(5, 10));
  EXPECT_THAT(sums.Means(2), ElementsAre(1, 4));
  EXPECT_THAT(sums.Means(1), ElementsAre(11.0f / 3, 8));
}

TEST(ActivationSquares, OfAProductWithAllExpertsAreEachOnesOwnColumns) {
  const float x[] = {1, 2, 3, 4, 5, 6};
  ActivationSquares::OfMatrix shared(2, 3), beside(2, 3);
  shared.Observe({x, 3, 2, nullptr}, 3, cpu::kAllUnits);
  beside.Observe({x, 6, 1, nullptr}, 6, cpu::kAllUnits);
  for (const int64_t unit : {0, 1}) EXPECT_THAT(shared.Means(unit), ElementsAre(8.5f, 14.5f, 22.5f));
  EXPECT_THAT(beside.Means(0), ElementsAre(1, 4, 9));
  EXPECT_THAT(beside.Means(1), ElementsAre(16, 25, 36));
}

// Products with a part of a matrix find their way to the stored weights that it was packed from.
TEST(ActivationSquares, OfAModelBelongToTheStoredWeightsOfTheirMatrix) {
  const OpenedModel opened("qwen2_moe_tiny");
  const ModelConfig& config = opened.config;
  cpu::CpuWeights weights = cpu::PackWeights(config, opened.weights, ElementType::kFloat32, cpu::WeightLayout::kPanels);
  ActivationSquares squares;
  squares.Observe(config, weights);
  const int64_t d = config.hidden_size, f = config.intermediate_size;
  const auto multiply = [](const cpu::WeightView& w, int64_t column) {
    std::vector<float> x(static_cast<size_t>(w.columns)), y(static_cast<size_t>(w.rows));
    x[static_cast<size_t>(column)] = 2;
    const cpu::DotProduct product{{x.data(), w.columns, 1, nullptr}, w, {y.data(), w.rows, nullptr}};
    cpu::MultiplyTransposed({&product, 1});
  };
  const auto hot = [](const std::vector<float>& means) {
    std::vector<int64_t> columns;
    for (size_t k = 0; k < means.size(); ++k) {
      if (means[k] != 0) columns.push_back(static_cast<int64_t>(k));
    }
    return columns;
  };
  const cpu::LayerViews& layer = weights.layers[1];
  multiply(layer.qkv, 3);
  multiply(layer.output, 4);
  multiply(layer.experts.GateUp(2), 5);
  multiply(layer.experts.Down(1), 6);
  multiply(layer.shared.gate_up, 7);
  multiply(layer.shared.down, 8);
  multiply(weights.lm_head, 9);
  const auto of = [&](WeightRole role, int64_t row, int64_t column, int64_t columns) {
    return hot(squares.Of(config, {role, role == WeightRole::kHead ? 0 : 1, row, column}, columns));
  };
  EXPECT_THAT(of(WeightRole::kQkv, 8, 0, d), ElementsAre(3));
  EXPECT_THAT(of(WeightRole::kOutput, 0, 0, d), ElementsAre(4));
  EXPECT_THAT(of(WeightRole::kExpertsGateUp, 2 * 2 * f + f, 0, d), ElementsAre(5));
  EXPECT_THAT(of(WeightRole::kExpertsDown, 0, f, f), ElementsAre(6));
  EXPECT_THAT(of(WeightRole::kSharedGateUp, 0, 0, d), ElementsAre(7));
  EXPECT_THAT(of(WeightRole::kSharedDown, 0, 0, config.shared_intermediate_size), ElementsAre(8));
  EXPECT_THAT(of(WeightRole::kHead, 0, 0, d), ElementsAre(9));
  EXPECT_THAT(of(WeightRole::kRouter, 0, 0, d), IsEmpty());
  // Of the experts that no product was with, what the layer's others met.
  EXPECT_THAT(of(WeightRole::kExpertsGateUp, 0, 0, d), ElementsAre(5));
  EXPECT_THAT(of(WeightRole::kExpertsDown, 0, 0, f), ElementsAre(6));
  EXPECT_THAT(squares.Of(config, {WeightRole::kQkv, 0, 0, 0}, d), IsEmpty());
  const ActivationSquares::Reach reach = squares.reach();
  EXPECT_GT(reach.unreached, 2 * (config.experts - 1));
  EXPECT_EQ(reach.units - reach.unreached, 7);
}

// The sum over the columns of what each weighs times the squared error of its weights: smaller where scales were chosen
// by it, over all matrices of a kind.
TEST(ActivationSquares, ChooseScalesWithTheSmallerError) {
  const OpenedModel opened("qwen2_moe_tiny");
  const ModelConfig& config = opened.config;
  cpu::CpuWeights stored = cpu::PackWeights(config, opened.weights, ElementType::kFloat32, cpu::WeightLayout::kPanels);
  ActivationSquares squares;
  squares.Observe(config, stored);
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  const auto observe = [&](const cpu::WeightView& w) {  // A few columns are far larger than others.
    std::vector<float> x(static_cast<size_t>(w.columns)), y(static_cast<size_t>(w.rows));
    for (float& each : x) each = std::exp(normal(random));
    const cpu::DotProduct product{{x.data(), w.columns, 1, nullptr}, w, {y.data(), w.rows, nullptr}};
    cpu::MultiplyTransposed({&product, 1});
  };
  for (const cpu::LayerViews& layer : stored.layers) {
    for (const cpu::WeightView* view : {&layer.qkv, &layer.output, &layer.shared.gate_up, &layer.shared.down}) {
      observe(*view);
    }
    for (int e = 0; layer.experts.exists() && e < config.experts; ++e) {
      observe(layer.experts.GateUp(e));
      observe(layer.experts.Down(e));
    }
  }
  observe(stored.lm_head);
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const auto pack = [&](const ActivationSquares* columns) {
      return cpu::PackWeights(config, opened.weights, ElementType::kFloat32, cpu::WeightLayout::kPanels, nullptr,
                              format, /*as_stored=*/false, columns);
    };
    const cpu::CpuWeights by_squares = pack(&squares), alike = pack(nullptr);
    const auto error = [&](const cpu::WeightView& view, const cpu::WeightView& exact, const std::vector<float>& a) {
      std::vector<float> got(static_cast<size_t>(view.columns)), wanted(got.size());
      double sum = 0;
      for (int64_t row = 0; row < view.rows; ++row) {
        cpu::CopyRow(view, row, got.data());
        cpu::CopyRow(exact, row, wanted.data());
        for (size_t k = 0; k < got.size(); ++k) sum += a[k] * std::pow(double{got[k]} - double{wanted[k]}, 2);
      }
      return sum;
    };
    std::map<std::string, std::pair<double, double>> errors;  // by squares, alike
    const auto add = [&](const char* name, const cpu::WeightView& ours, const cpu::WeightView& others,
                         const cpu::WeightView& exact, const WeightUse& use) {
      const std::vector<float> a = squares.Of(config, use, exact.columns);
      ASSERT_EQ(static_cast<int64_t>(a.size()), exact.columns);
      errors[name].first += error(ours, exact, a);
      errors[name].second += error(others, exact, a);
    };
    for (int l = 0; l < config.layers; ++l) {
      const cpu::LayerViews &ours = by_squares.layers[l], &others = alike.layers[l], &exact = stored.layers[l];
      const int64_t f = config.intermediate_size;
      add("qkv", ours.qkv, others.qkv, exact.qkv, {WeightRole::kQkv, l});
      add("output", ours.output, others.output, exact.output, {WeightRole::kOutput, l});
      add("shared", ours.shared.down, others.shared.down, exact.shared.down, {WeightRole::kSharedDown, l});
      std::vector<float> of_down;
      for (int64_t e = 0; exact.experts.exists() && e < config.experts; ++e) {
        add("gate and up", ours.experts.GateUp(e), others.experts.GateUp(e), exact.experts.GateUp(e),
            {WeightRole::kExpertsGateUp, l, 2 * f * e});
        const std::vector<float> own = squares.Of(config, {WeightRole::kExpertsDown, l, 0, f * e}, f);
        of_down.insert(of_down.end(), own.begin(), own.end());
      }
      if (exact.experts.exists()) {
        errors["down"].first += error(ours.experts.down, exact.experts.down, of_down);
        errors["down"].second += error(others.experts.down, exact.experts.down, of_down);
      }
    }
    add("head", by_squares.lm_head, alike.lm_head, stored.lm_head, {WeightRole::kHead});
    for (const auto& [name, of] : errors) {
      const bool eight = format == WeightFormat::kInt8 || name == "head";
      EXPECT_LT(of.first, (eight ? 1 : 0.9) * of.second) << name;
    }
    EXPECT_EQ(errors.size(), 6u);
  }
}

}  // namespace
}  // namespace c3po
