#include "tests/server/quantize/made_up_folder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "absl/strings/match.h"
#include "server/model/config/tensor_plan.h"

namespace c3po {

void MadeUpModel::Write(const TestFolder& folder) const {
  nlohmann::json json =
      nlohmann::json::parse(std::ifstream(std::string(C3PO_TESTDATA_DIR) + "/model/" + golden + "/config.json"));
  json.update(nlohmann::json::parse(changes));
  folder.Write("config.json", json.dump());
  const auto config = ModelConfig::Parse(json.dump(), "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  std::mt19937 random(26);
  const auto add = [&](const PlannedTensor& tensor) {
    const size_t begin = data.size();
    int64_t elements = 1;
    for (const int64_t dimension : tensor.shape) elements *= dimension;
    for (int64_t i = 0; i < elements; ++i) {
      const float value = std::normal_distribution<float>(0, 0.2F)(random);
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof(bits));
      for (const uint32_t byte : {bits >> 16, bits >> 24}) data.push_back(static_cast<char>(byte));
    }
    header[tensor.name] = {{"dtype", "BF16"}, {"shape", tensor.shape}, {"data_offsets", {begin, data.size()}}};
    return absl::OkStatus();
  };
  const auto has = [this](const std::string& name) {
    return together && (absl::EndsWith(name, "mlp.experts.gate_up_proj") || absl::EndsWith(name, "mlp.gate.weight"));
  };
  ASSERT_TRUE(VisitTensors(*config, has, add).ok());
  folder.Write("model.safetensors", SafetensorsText(header.dump(), data));
}

}  // namespace c3po
