// Weights as they are stored: 8 and 16 bits, in shards, with tensors too few and too many.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "server/compute/cpu/cpu_weights.h"
#include "server/model/moe_model.h"
#include "server/weights/safetensors_file.h"
#include "tests/server/owned_segment.h"

namespace c3po {
namespace {

using Tensors = std::map<std::string, at::Tensor>;

// A model's folder written by a test from the float32 tensors of a golden model.
class StoredModel : public testing::Test {
 protected:
  void SetUp() override {
    source_ = std::string(C3PO_TESTDATA_DIR) + "/model/deepseek_tiny";
    folder_ = testing::TempDir() + "/stored_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    std::filesystem::copy(source_ + "/config.json", folder_ + "/config.json");
    file_ = *SafetensorsFile::Open(source_ + "/model.safetensors");
    for (const std::string& name : file_->names()) {
      const TensorView& view = *file_->Find(name);
      tensors_[name] = at::from_blob(const_cast<std::byte*>(view.bytes.data()), view.shape, at::kFloat).clone();
    }
  }

  static void Write(const std::string& path, const Tensors& tensors, at::ScalarType type, const std::string& dtype) {
    nlohmann::json header;
    std::string data;
    for (const auto& [name, tensor] : tensors) {
      const at::Tensor stored = tensor.to(type).contiguous();
      const size_t begin = data.size();
      data.append(static_cast<const char*>(stored.const_data_ptr()), stored.nbytes());
      header[name] = {{"dtype", dtype}, {"shape", stored.sizes().vec()}, {"data_offsets", {begin, data.size()}}};
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');
    const uint64_t length = text.size();
    std::ofstream out(path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof length);
    out << text << data;
  }

  // Two shards and their index.
  void WriteShards(const Tensors& tensors, const Tensors& not_listed = {}) {
    Tensors halves[2];
    nlohmann::json index;
    for (const auto& [name, tensor] : tensors) {
      const size_t i = name.find("layers.3") != std::string::npos;
      halves[i][name] = tensor;
      index["weight_map"][name] = i ? "b.safetensors" : "a.safetensors";
    }
    halves[1].insert(not_listed.begin(), not_listed.end());
    Write(folder_ + "/a.safetensors", halves[0], at::kHalf, "F16");
    Write(folder_ + "/b.safetensors", halves[1], at::kHalf, "F16");
    std::ofstream(folder_ + "/model.safetensors.index.json") << index;
  }

  absl::StatusOr<std::unique_ptr<MoeModel>> Load() {
    MoeModelOptions options;
    options.folder = folder_;
    return MoeModel::Load(options);
  }

  // Rows [begin, begin + count) of columns [first, first + size), as float32.
  static at::Tensor RowsOf(const cpu::WeightView& w, int64_t begin, int64_t count, int64_t first, int64_t size) {
    const at::Tensor rows = at::empty({count, w.columns});
    for (int64_t r = 0; r < count; ++r) {
      cpu::CopyRow(w, begin + r, rows.mutable_data_ptr<float>() + r * w.columns);
    }
    return rows.narrow(1, first, size);
  }
  static at::Tensor All(const cpu::WeightView& w) { return RowsOf(w, 0, w.rows, 0, w.columns); }

  // Every kind of place a tensor can go to, as float32.
  void ExpectWeights(const MoeModel& model, at::ScalarType stored, at::ScalarType kept) const {
    const auto expected = [&](const std::string& name) { return tensors_.at(name).to(stored).to(kept).to(at::kFloat); };
    const ModelConfig& config = model.config();
    const ElementType type = kept == at::kFloat ? ElementType::kFloat32 : ElementType::kBfloat16;
    EXPECT_EQ(model.shape().dtype, kept == at::kFloat ? "float32" : "bfloat16");
    const cpu::CpuWeights w =
        cpu::PackWeights(config, *ViewWeights(*Checkpoint::Open(folder_), config), type, cpu::WeightLayout::kPanels);
    EXPECT_EQ(w.bytes, model.weight_bytes());
    EXPECT_EQ(w.lm_head.bfloat16, kept == at::kBFloat16);
    EXPECT_TRUE(All(w.lm_head).equal(expected("lm_head.weight")));
    const at::Tensor norm = at::from_blob(const_cast<float*>(w.final_norm), {config.hidden_size}, at::kFloat);
    EXPECT_TRUE(norm.equal(expected("model.norm.weight")));
    const cpu::LayerViews& layer = w.layers[3];
    const std::string prefix = "model.layers.3.mlp.";
    EXPECT_TRUE(All(layer.router).equal(expected(prefix + "gate.weight")));
    const int64_t f = layer.experts.neurons;
    EXPECT_TRUE(RowsOf(layer.experts.down, 0, config.hidden_size, 5 * f, f)
                    .equal(expected(prefix + "experts.5.down_proj.weight")));
    EXPECT_TRUE(All(layer.shared.gate_up)
                    .equal(at::cat({expected(prefix + "shared_experts.gate_proj.weight"),
                                    expected(prefix + "shared_experts.up_proj.weight")})));
    EXPECT_FALSE(w.layers[0].moe());
    EXPECT_TRUE(All(w.layers[0].shared.down).equal(expected("model.layers.0.mlp.down_proj.weight")));
  }

  std::string source_, folder_;
  std::unique_ptr<SafetensorsFile> file_;
  Tensors tensors_;
};

TEST_F(StoredModel, OfSixteenBitsInShardsIsReadExactly) {
  WriteShards(tensors_);
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectWeights(**model, at::kHalf, at::kFloat);
}

TEST_F(StoredModel, OfEightBitsIsReadToBfloat16Exactly) {
  Write(folder_ + "/model.safetensors", tensors_, at::kFloat8_e4m3fn, "F8_E4M3");
  const auto model = Load();
  ASSERT_TRUE(model.ok()) << model.status();
  ExpectWeights(**model, at::kFloat8_e4m3fn, at::kBFloat16);
  ASSERT_TRUE((*model)->AllocateKvCache(SlotsOf(4)).ok());
  OwnedSegment segment;
  segment.kv = {{0, 4}};
  segment.tokens = {1, 2, 3};
  const auto out = RunSegments(**model, {segment});
  ASSERT_TRUE(out.ok()) << out.status();
  for (float logit : out->at(0).readout.logits) ASSERT_TRUE(std::isfinite(logit));
}

TEST_F(StoredModel, WithATensorTooFewIsRefusedByItsName) {
  const std::string name = "model.layers.3.mlp.experts.7.up_proj.weight";
  tensors_.erase(name);
  WriteShards(tensors_);
  EXPECT_NE(Load().status().message().find(name), std::string::npos) << Load().status();
}

TEST_F(StoredModel, WithATensorTooManyInAShardIsRefusedByItsName) {
  const std::string name = "model.layers.3.mlp.gate.e_score_correction_bias";
  WriteShards(tensors_, {{name, at::zeros({16})}});
  EXPECT_NE(Load().status().message().find(name), std::string::npos) << Load().status();
}

TEST_F(StoredModel, OfIntegersIsRefusedByTheTensorsNameAndDtype) {
  Write(folder_ + "/model.safetensors", tensors_, at::kInt, "I32");
  const absl::Status status = Load().status();
  EXPECT_NE(status.message().find("model.embed_tokens.weight"), std::string::npos) << status;
  EXPECT_NE(status.message().find("I32"), std::string::npos) << status;
}

}  // namespace
}  // namespace c3po
