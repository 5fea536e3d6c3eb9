#include "server/compute/aten/rope_tensors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace c3po::aten {
namespace {

ModelConfig SmallConfig() {
  ModelConfig config;
  config.layers = 1;
  config.heads = config.kv_heads = 2;
  config.head_dim = 8;
  config.context_window = 50;
  config.rope_theta = 100;
  config.FillDerived();
  return config;
}

// Backends without libtorch read it on the host, after the tensors that made it are gone.
TEST(MakeRopeTable, HoldsTheCosineAndSineOfEveryPositionOnTheHost) {
  const RopeTable table = MakeRopeTable(SmallConfig());
  ASSERT_EQ(table.positions, 50);
  ASSERT_EQ(table.half, 4);
  for (int64_t position = 0; position < 50; ++position) {
    float cos[4], sin[4];
    table.CopyRow(position, cos, sin);
    for (int i = 0; i < 4; ++i) {
      const double angle = static_cast<double>(position) * std::pow(100.0, -i / 4.0);
      EXPECT_NEAR(cos[i], std::cos(angle), 5e-6) << position << ", " << i;
      EXPECT_NEAR(sin[i], std::sin(angle), 5e-6) << position << ", " << i;
    }
  }
}

TEST(MakeRopeTable, TakesTheAttentionFactorIntoItsEntries) {
  ModelConfig config = SmallConfig();
  config.rope_scaling.attention_factor = 1.5;
  const RopeTable table = MakeRopeTable(config), plain = MakeRopeTable(SmallConfig());
  for (int64_t i = 0; i < 50 * 4; ++i) {
    EXPECT_FLOAT_EQ(table.cos.get()[i], 1.5f * plain.cos.get()[i]);
    EXPECT_FLOAT_EQ(table.sin.get()[i], 1.5f * plain.sin.get()[i]);
  }
}

TEST(RopeTensors, AreTheTablesRowsAndKeepItAlive) {
  RopeTensors all;
  float cos[4], sin[4];
  {
    const RopeTable table = MakeRopeTable(SmallConfig());
    table.CopyRow(7, cos, sin);
    all = RopeTensors::Of(table, at::kCPU);
    EXPECT_EQ(all.cos.const_data_ptr<float>(), table.cos.get());
  }
  const RopeTensors rows = all.Select(at::tensor({3, 7}, at::kLong), at::kDouble);
  ASSERT_EQ(rows.cos.sizes(), (std::vector<int64_t>{2, 1, 4}));
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(rows.cos[1][0][i].item<double>(), double{cos[i]});
    EXPECT_EQ(rows.sin[1][0][i].item<double>(), double{sin[i]});
  }
}

}  // namespace
}  // namespace c3po::aten
