// What a folder stores, as the CPU's backend packs it: against the definition of every role, read from the names of
// tensors.

#include "server/compute/cpu/cpu_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/weights/stored_elements.h"
#include "tests/server/compute/opened_model.h"

namespace c3po {
namespace {

using testing::ElementsAre;

// A stored tensor in float32, its rows.
std::vector<std::vector<float>> RowsOf(const Checkpoint& checkpoint, const std::string& name) {
  const HostMatrix matrix = HostMatrix::Of(*checkpoint.Find(name));
  std::vector<std::vector<float>> rows;
  for (int64_t r = 0; r < matrix.rows; ++r) {
    rows.emplace_back(static_cast<size_t>(matrix.columns));
    ToFloat32(matrix.type, matrix.Rows(r, 1).bytes.data(), matrix.columns, rows.back().data());
  }
  return rows;
}
std::vector<float> RowOf(const cpu::WeightView& w, int64_t row) {
  std::vector<float> values(static_cast<size_t>(w.columns));
  cpu::CopyRow(w, row, values.data());
  return values;
}

// Rows of a view from `first` on, in columns from `column` on.
void ExpectRows(const cpu::WeightView& w, int64_t first, const std::vector<std::vector<float>>& rows,
                int64_t column = 0) {
  for (size_t r = 0; r < rows.size(); ++r) {
    const std::vector<float> all = RowOf(w, first + static_cast<int64_t>(r));
    const auto begin = all.begin() + column;
    ASSERT_EQ(std::vector<float>(begin, begin + static_cast<int64_t>(rows[r].size())), rows[r]) << "row " << r;
  }
}

cpu::CpuWeights PackOpened(const OpenedModel& opened, ElementType type = ElementType::kFloat32,
                           cpu::WeightLayout layout = cpu::WeightLayout::kPanels) {
  return cpu::PackWeights(opened.config, opened.weights, type, layout);
}

TEST(CpuWeights, OfAnMoeLayerAreItsTensors) {
  const OpenedModel opened("qwen2_moe_tiny");
  const auto stored = [&](const std::string& name) {
    return RowsOf(*opened.checkpoint, absl::StrCat("model.layers.1.", name));
  };
  const cpu::CpuWeights packed = PackOpened(opened);
  const cpu::LayerViews& layer = packed.layers[1];
  const ModelConfig& config = opened.config;
  const int64_t query = config.heads * config.head_dim, key = config.kv_heads * config.head_dim;
  ExpectRows(layer.qkv, 0, stored("self_attn.q_proj.weight"));
  ExpectRows(layer.qkv, query, stored("self_attn.k_proj.weight"));
  ExpectRows(layer.qkv, query + key, stored("self_attn.v_proj.weight"));
  const auto value_bias = stored("self_attn.v_proj.bias");
  for (int64_t i = 0; i < key; ++i) EXPECT_EQ(layer.qkv_bias[query + key + i], value_bias[i][0]);
  ExpectRows(layer.output, 0, stored("self_attn.o_proj.weight"));
  ExpectRows(layer.router, 0, stored("mlp.gate.weight"));
  ExpectRows(layer.shared_gate, 0, stored("mlp.shared_expert_gate.weight"));
  const int64_t f = config.intermediate_size;
  for (int e = 0; e < config.experts; ++e) {
    const std::string expert = absl::StrCat("mlp.experts.", e, ".");
    ExpectRows(layer.experts.gate_up, 2 * f * e, stored(expert + "gate_proj.weight"));
    ExpectRows(layer.experts.gate_up, 2 * f * e + f, stored(expert + "up_proj.weight"));
    ExpectRows(layer.experts.down, 0, stored(expert + "down_proj.weight"), f * e);
  }
  ExpectRows(packed.embedding, 0, RowsOf(*opened.checkpoint, "model.embed_tokens.weight"));
}

// Experts that are stored together lie where those that are stored apart do.
TEST(CpuWeights, OfExpertsStoredTogetherLieSideBySide) {
  const OpenedModel opened("granite_moe_tiny");
  const cpu::CpuWeights packed = PackOpened(opened);
  const ModelConfig& config = opened.config;
  const std::string prefix = "model.layers.0.block_sparse_moe.";
  ExpectRows(packed.layers[0].experts.gate_up, 0, RowsOf(*opened.checkpoint, prefix + "input_linear.weight"));
  const auto down = RowsOf(*opened.checkpoint, prefix + "output_linear.weight");
  const int64_t d = config.hidden_size, f = config.intermediate_size;
  for (int e = 0; e < config.experts; ++e) {
    ExpectRows(packed.layers[0].experts.down, 0, {down.begin() + e * d, down.begin() + (e + 1) * d}, e * f);
  }
}

// Rotated parts: stored as pairs (0, 1), (2, 3), ..., used as halves (0, 2, ...), (1, 3, ...).
TEST(CpuWeights, OfLatentAttentionHaveRotatedRowsAsHalves) {
  const OpenedModel opened("deepseek_v2_tiny");
  const cpu::CpuWeights packed = PackOpened(opened);
  const ModelConfig& config = opened.config;
  const std::string prefix = "model.layers.1.self_attn.";
  const int64_t turned = config.rope_dim, plain = config.head_dim - turned;
  const auto expand = RowsOf(*opened.checkpoint, prefix + "q_b_proj.weight");
  for (int h = 0; h < config.heads; ++h) {
    for (int64_t i = 0; i < config.head_dim; ++i) {
      const int64_t half = i < plain ? i : plain + (i - plain) / 2 + (i - plain) % 2 * (turned / 2);
      EXPECT_EQ(RowOf(packed.layers[1].query_expand, h * config.head_dim + half), expand[h * config.head_dim + i]);
    }
  }
  const auto latent = RowsOf(*opened.checkpoint, prefix + "kv_a_proj_with_mqa.weight");
  const int64_t rank = config.latent->kv_rank, first = config.latent->query_rank;
  for (int64_t i = 0; i < rank; ++i) EXPECT_EQ(RowOf(packed.layers[1].qkv, first + i), latent[i]);
  for (int64_t i = 0; i < turned; ++i) {
    EXPECT_EQ(RowOf(packed.layers[1].qkv, first + rank + i / 2 + i % 2 * (turned / 2)), latent[rank + i]);
  }
}

TEST(CpuWeights, LieInTheLayoutThatEachRoleCanHave) {
  const OpenedModel opened("deepseek_tiny");  // Experts have 20 rows of gate and up, so no panels of 16.
  const auto layouts = [&](ElementType type, cpu::WeightLayout layout) {
    const cpu::CpuWeights packed = PackOpened(opened, type, layout);
    const cpu::LayerViews& layer = packed.layers[3];
    return std::vector<cpu::WeightLayout>{packed.embedding.layout, layer.qkv.layout, layer.router.layout,
                                          layer.experts.gate_up.layout, layer.experts.down.layout};
  };
  using enum cpu::WeightLayout;
  EXPECT_THAT(layouts(ElementType::kFloat32, kPanels), ElementsAre(kRows, kPanels, kPanels, kRows, kPanels));
  EXPECT_THAT(layouts(ElementType::kFloat32, kPairs), ElementsAre(kRows, kPanels, kPanels, kRows, kPanels));
  EXPECT_THAT(layouts(ElementType::kBfloat16, kPairs), ElementsAre(kRows, kPairs, kPanels, kRows, kPairs));
  EXPECT_THAT(layouts(ElementType::kBfloat16, kPanels), ElementsAre(kRows, kPanels, kPanels, kRows, kPanels));
}

// Quantized: what is multiplied with, but for routers and gates of shared experts; attention and the LM head in 8 bits.
TEST(CpuWeights, OfEightAndFourBitsAreTheLargeMatricesAndAllElseIsAsItWas) {
  using enum cpu::WeightLayout;
  for (const auto& [format, layout] : {std::pair{WeightFormat::kInt8, kInt8}, {WeightFormat::kInt4, kInt4}}) {
    const OpenedModel opened("qwen2_moe_tiny");
    const cpu::CpuWeights packed =
        cpu::PackWeights(opened.config, opened.weights, ElementType::kFloat32, kPanels, nullptr, format);
    const cpu::CpuWeights stored = PackOpened(opened);
    EXPECT_EQ(packed.format, format);
    const cpu::LayerViews& layer = packed.layers[1];
    const cpu::LayerViews& whole = stored.layers[1];
    EXPECT_EQ(layer.router.layout, whole.router.layout);
    EXPECT_EQ(layer.shared_gate.layout, kRows);
    EXPECT_EQ(RowOf(layer.router, 3), RowOf(whole.router, 3));
    const std::tuple<const cpu::WeightView*, const cpu::WeightView*, cpu::WeightLayout> matrices[] = {
        {&packed.embedding, &stored.embedding, layout},
        {&packed.lm_head, &stored.lm_head, kInt8},
        {&layer.qkv, &whole.qkv, kInt8},
        {&layer.output, &whole.output, kInt8},
        {&layer.experts.gate_up, &whole.experts.gate_up, layout},
        {&layer.experts.down, &whole.experts.down, layout},
        {&layer.shared.gate_up, &whole.shared.gate_up, layout},
        {&layer.shared.down, &whole.shared.down, layout}};
    for (const auto& [view, from, held] : matrices) {
      const double step = held == kInt8 ? 1 / 123.0 : 1 / 6.5;
      EXPECT_EQ(view->layout, held);
      ASSERT_EQ(view->rows, from->rows);
      ASSERT_EQ(view->columns, from->columns);
      double largest = 0, error = 0;
      for (int64_t row = 0; row < view->rows; ++row) {
        const std::vector<float> got = RowOf(*view, row), expected = RowOf(*from, row);
        for (size_t i = 0; i < got.size(); ++i) {
          largest = std::max(largest, std::abs(double{expected[i]}));
          error = std::max(error, std::abs(double{got[i]} - expected[i]));
        }
      }
      EXPECT_LE(error, step * largest);  // Half a step, or a whole one where the last level is below a weight.
      EXPECT_GT(error, 0);
    }
  }
}

// Of an expert's 24 or 40 rows of gate and up the last panel is not full: 16 stored rows lie in two panels there.
TEST(CpuWeights, OfExpertsThatEndWithinAPanelHaveEachRowInItsPlace) {
  for (const char* name : {"granite_moe_tiny", "deepseek_tiny"}) {
    const OpenedModel opened(name);
    ASSERT_NE(2 * opened.config.intermediate_size % 16, 0);
    const cpu::CpuWeights stored = PackOpened(opened);
    const cpu::CpuWeights packed = cpu::PackWeights(opened.config, opened.weights, ElementType::kFloat32,
                                                    cpu::WeightLayout::kPanels, nullptr, WeightFormat::kInt8);
    const cpu::WeightView &from = stored.layers.back().experts.gate_up, &view = packed.layers.back().experts.gate_up;
    ASSERT_EQ(view.layout, cpu::WeightLayout::kInt8);
    for (int64_t row = 0; row < from.rows; ++row) {
      const std::vector<float> got = RowOf(view, row), expected = RowOf(from, row);
      float largest = 0;
      for (const float value : expected) largest = std::max(largest, std::abs(value));
      for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], largest / 123) << name << " row " << row;
    }
  }
}

// Blocks of a file of llama.cpp's are widened, and these numbers quantized.
TEST(CpuWeights, OfAGgufFileAreQuantizedFromItsWidenedBlocks) {
  const std::shared_ptr<const Checkpoint> checkpoint =
      *OpenCheckpoint(std::string(C3PO_TESTDATA_DIR) + "/gguf/olmoe.gguf");
  const ModelConfig config = *ReadConfig(*checkpoint);
  const ModelWeights weights = *ViewWeights(checkpoint, config);
  const cpu::CpuWeights stored = cpu::PackWeights(config, weights, ElementType::kFloat32, cpu::WeightLayout::kPanels);
  const cpu::CpuWeights packed = cpu::PackWeights(config, weights, ElementType::kFloat32, cpu::WeightLayout::kPanels,
                                                  nullptr, WeightFormat::kInt8);
  for (const auto& [got, from] : {std::pair{packed.layers[0].qkv, stored.layers[0].qkv},
                                  {packed.layers[0].experts.down, stored.layers[0].experts.down},
                                  {packed.lm_head, stored.lm_head}}) {
    EXPECT_EQ(got.layout, cpu::WeightLayout::kInt8);
    for (int64_t row = 0; row < from.rows; ++row) {
      const std::vector<float> values = RowOf(got, row), expected = RowOf(from, row);
      double largest = 0;
      for (const float value : expected) largest = std::max(largest, std::abs(double{value}));
      for (size_t i = 0; i < values.size(); ++i) ASSERT_NEAR(values[i], expected[i], largest / 123) << "row " << row;
    }
  }
}

// An embedding that is the LM head too lies once, in 8 bits.
TEST(CpuWeights, OfATiedModelHaveOneMatrixOfEightBitsForBothUses) {
  const OpenedModel opened("mixtral_tiny");
  const cpu::CpuWeights packed = cpu::PackWeights(opened.config, opened.weights, ElementType::kFloat32,
                                                  cpu::WeightLayout::kPanels, nullptr, WeightFormat::kInt4);
  EXPECT_EQ(packed.embedding.layout, cpu::WeightLayout::kInt8);
  EXPECT_EQ(packed.embedding.data, packed.lm_head.data);
}

TEST(CpuWeights, OfEightOrFourBitsRefuseAWeightThatIsNotFiniteByItsTensorsName) {
  const OpenedModel opened("olmoe_tiny");
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    ModelWeights weights = opened.weights;
    StoredWeight& stored = weights.layers[1].back();
    ASSERT_FALSE(stored.name.empty());
    const std::string name = stored.name;
    std::vector<float> numbers(static_cast<size_t>(stored.matrix.rows * stored.matrix.columns), 0.5f);
    numbers[7] = bad;
    stored.matrix.type = DType::kF32;
    stored.matrix.mapped = false;
    stored.matrix.bytes = {reinterpret_cast<const std::byte*>(numbers.data()), numbers.size() * sizeof(float)};
    if (IsVector(stored.use.role) || stored.use.role == WeightRole::kRouter) GTEST_FAIL() << name;
    try {
      cpu::PackWeights(opened.config, weights, ElementType::kFloat32, cpu::WeightLayout::kPanels, nullptr,
                       WeightFormat::kInt4);
      ADD_FAILURE() << "it was taken";
    } catch (const std::invalid_argument& error) {
      EXPECT_THAT(error.what(),
                  testing::HasSubstr(name + " has a weight that is not finite or too large, which int4 cannot hold"));
    }
  }
}

TEST(CpuWeights, TakeTheBytesOfTheirElementsOnce) {
  for (const std::string name : {"olmoe_tiny", "granite_moe_tiny", "deepseek_tiny"}) {
    const OpenedModel opened(name);
    EXPECT_EQ(PackOpened(opened).bytes, 4 * CountParameters(opened.config).total) << name;
  }
}

// They hold what they view.
TEST(CpuWeights, ArePackedFromViewsThatKeepTheCheckpoint) {
  OpenedModel opened("olmoe_tiny");
  const std::vector<float> expected = RowsOf(*opened.checkpoint, "model.embed_tokens.weight")[3];
  opened.checkpoint.reset();
  EXPECT_EQ(RowOf(PackOpened(opened).embedding, 3), expected);
}

}  // namespace
}  // namespace c3po
