// A folder that was quantized holds, bit for bit, what its original becomes when it is quantized at load.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "server/compute/cpu/cpu_weights.h"
#include "tests/server/compute/opened_model.h"
#include "tests/server/quantize/made_up_folder.h"

namespace c3po {
namespace {

using cpu::CpuWeights;
using cpu::WeightLayout;
using cpu::WeightView;

struct Opened : OpenedFolder {
  using OpenedFolder::OpenedFolder;
  CpuWeights Pack(WeightFormat format, bool as_stored = false) const {
    return cpu::PackWeights(config, weights, ElementType::kBfloat16, WeightLayout::kPanels, nullptr, format, as_stored);
  }
};

// The bytes of a view's groups, without what pads them; of one that is not quantized, its numbers.
std::string ContentOf(const WeightView& view) {
  std::string content;
  const auto append = [&](const void* from, int64_t bytes) {
    content.append(static_cast<const char*>(from), static_cast<size_t>(bytes));
  };
  if (view.data == nullptr) return "none";
  if (!view.quantized()) {
    std::vector<float> row(static_cast<size_t>(view.columns));
    for (int64_t r = 0; r < view.rows; ++r) {
      cpu::CopyRow(view, r, row.data());
      append(row.data(), view.columns * static_cast<int64_t>(sizeof(float)));
    }
    return content;
  }
  content = view.layout == WeightLayout::kInt8 ? "int8" : "int4";
  const int64_t groups = view.cut.panel_groups;
  for (int64_t panel = 0; panel < view.cut.Panels(view.rows); ++panel) {
    const char* const at = static_cast<const char*>(view.data) + panel * cpu::PanelBytes(view.layout, groups);
    append(at, groups * cpu::kScaleBytes);
    append(at + cpu::ScalesBytes(groups), groups * cpu::QuantBytes(view.layout));
  }
  return content;
}

void ExpectSame(const CpuWeights& got, const CpuWeights& expected, int64_t hidden) {
  EXPECT_EQ(ContentOf(got.embedding), ContentOf(expected.embedding));
  EXPECT_EQ(ContentOf(got.lm_head), ContentOf(expected.lm_head));
  ASSERT_EQ(got.layers.size(), expected.layers.size());
  for (size_t l = 0; l < got.layers.size(); ++l) {
    const cpu::LayerViews &a = got.layers[l], &b = expected.layers[l];
    const std::vector<std::pair<const WeightView*, const WeightView*>> views = {
        {&a.qkv, &b.qkv},
        {&a.output, &b.output},
        {&a.query_expand, &b.query_expand},
        {&a.kv_expand, &b.kv_expand},
        {&a.router, &b.router},
        {&a.experts.gate_up, &b.experts.gate_up},
        {&a.experts.down, &b.experts.down},
        {&a.shared.gate_up, &b.shared.gate_up},
        {&a.shared.down, &b.shared.down},
        {&a.shared_gate, &b.shared_gate}};
    for (size_t i = 0; i < views.size(); ++i) {
      EXPECT_TRUE(ContentOf(*views[i].first) == ContentOf(*views[i].second)) << "layer " << l << ", view " << i;
    }
    for (int64_t c = 0; c < hidden; ++c) ASSERT_EQ(a.attention_norm[c], b.attention_norm[c]);
  }
}

using Case = std::tuple<MadeUpModel, WeightFormat>;
class QuantizedFolderPanels : public testing::TestWithParam<Case> {};

TEST_P(QuantizedFolderPanels, AreThoseOfQuantizingAtLoad) {
  const auto& [model, format] = GetParam();
  QuantizedFolder folder;
  model.Write(folder.folder());
  folder.Quantize(format);
  ASSERT_TRUE(folder.result().ok()) << folder.result().status();
  const Opened from(folder.from()), to(folder.to());
  const CpuWeights expected = from.Pack(format);
  const CpuWeights got = to.Pack(format, /*as_stored=*/true);
  ExpectSame(got, expected, from.config.hidden_size);
  EXPECT_EQ(got.bytes, expected.bytes);
  EXPECT_EQ(got.lm_head.layout, WeightLayout::kInt8);
  EXPECT_TRUE(got.layers.back().experts.down.quantized());
  // Asked for by name it is the same: nothing is left to quantize.
  ExpectSame(to.Pack(format), expected, from.config.hidden_size);
}

// Widened, the numbers are those of the panels, and exact.
TEST_P(QuantizedFolderPanels, AreWidenedExactly) {
  const auto& [model, format] = GetParam();
  QuantizedFolder folder;
  model.Write(folder.folder());
  folder.Quantize(format);
  ASSERT_TRUE(folder.result().ok()) << folder.result().status();
  const Opened to(folder.to());
  const CpuWeights panels = to.Pack(format, /*as_stored=*/true);
  const CpuWeights wide = cpu::PackWeights(to.config, to.weights, ElementType::kFloat32, WeightLayout::kPanels);
  for (const auto& [a, b] : {std::pair{panels.layers[0].qkv, wide.layers[0].qkv},
                             {panels.layers[0].output, wide.layers[0].output},
                             {panels.layers.back().experts.gate_up, wide.layers.back().experts.gate_up},
                             {panels.layers.back().experts.down, wide.layers.back().experts.down},
                             {panels.lm_head, wide.lm_head}}) {
    EXPECT_FALSE(b.quantized());
    // An LM head that is the embedding too is stored in elements.
    if (to.config.tied_embeddings && b.data == wide.lm_head.data) continue;
    std::vector<float> got(static_cast<size_t>(a.columns)), expected = got;
    for (int64_t r = 0; r < a.rows; ++r) {
      cpu::CopyRow(b, r, got.data());
      cpu::CopyRow(a, r, expected.data());
      ASSERT_EQ(got, expected) << "row " << r;
    }
  }
}

std::vector<MadeUpModel> Models() {
  return {{"olmoe_tiny", R"({"intermediate_size": 48})"},
          {"mixtral_tiny", R"({"intermediate_size": 32})", /*together=*/true},
          {"qwen2_moe_tiny",
           R"({"intermediate_size": 64, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 32})"},
          {"qwen3_moe_tiny", R"({"moe_intermediate_size": 16, "intermediate_size": 64})", /*together=*/true},
          {"deepseek_v2_tiny",
           R"({"intermediate_size": 64, "moe_intermediate_size": 48, "q_lora_rank": 32, "v_head_dim": 8})"},
          {"deepseek_tiny", R"({"intermediate_size": 64, "moe_intermediate_size": 16})"},
          {"granite_moe_tiny", R"({"intermediate_size": 16})"}};
}
INSTANTIATE_TEST_SUITE_P(Families, QuantizedFolderPanels,
                         testing::Combine(testing::ValuesIn(Models()),
                                          testing::Values(WeightFormat::kInt8, WeightFormat::kInt4)),
                         [](const auto& info) {
                           const bool int8 = std::get<1>(info.param) == WeightFormat::kInt8;
                           return std::get<0>(info.param).golden + (int8 ? "_int8" : "_int4");
                         });

// Widths that no group divides: such matrices stay as they are, unless they are quantized at load as ever.
TEST(QuantizedFolderOfOddWidths, LeavesThemAsStored) {
  QuantizedFolder folder;
  folder.From(std::string(C3PO_TESTDATA_DIR) + "/model/olmoe_tiny");  // Experts of 20 neurons.
  folder.Quantize(WeightFormat::kInt4);
  ASSERT_TRUE(folder.result().ok()) << folder.result().status();
  const Opened from(folder.from()), to(folder.to());
  const CpuWeights stored = to.Pack(WeightFormat::kInt4, /*as_stored=*/true);
  const CpuWeights plain = from.Pack(WeightFormat::kElements);
  EXPECT_EQ(ContentOf(stored.layers[1].experts.down), ContentOf(plain.layers[1].experts.down));
  EXPECT_EQ(stored.layers[1].experts.gate_up.layout, WeightLayout::kInt4);
  ExpectSame(to.Pack(WeightFormat::kInt4), from.Pack(WeightFormat::kInt4), from.config.hidden_size);
}

// What lies in one matrix has to be stored alike.
TEST(QuantizedFolderOfMixedParts, IsRefusedByTheTensorsName) {
  const Opened plain(std::string(C3PO_TESTDATA_DIR) + "/model/olmoe_tiny");
  QuantizedFolder folder;
  folder.From(plain.checkpoint->folder());
  folder.Quantize(WeightFormat::kInt4);
  ASSERT_TRUE(folder.result().ok()) << folder.result().status();
  Opened mixed(folder.to());
  for (size_t i = 0; i < mixed.weights.layers[2].size(); ++i) {
    StoredWeight& stored = mixed.weights.layers[2][i];
    if (stored.name == "model.layers.2.self_attn.k_proj.weight") stored = plain.weights.layers[2][i];
  }
  try {
    mixed.Pack(WeightFormat::kInt4, /*as_stored=*/true);
    FAIL() << "packed";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("model.layers.2.self_attn.k_proj.weight"));
  }
  EXPECT_TRUE(mixed.Pack(WeightFormat::kInt4).layers[2].qkv.quantized());
}

}  // namespace
}  // namespace c3po
