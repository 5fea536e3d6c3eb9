#ifndef C3PO_TESTS_SERVER_QUANTIZE_MADE_UP_FOLDER_H_
#define C3PO_TESTS_SERVER_QUANTIZE_MADE_UP_FOLDER_H_

#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "server/model/config/tensor_plan.h"
#include "server/quantize/quantize_folder.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {

inline nlohmann::json JsonOf(const std::string& path) {
  return nlohmann::json::parse(std::ifstream(path), nullptr, /*allow_exceptions=*/false);
}

// A golden family's configuration with other sizes, and random weights in bfloat16.
struct MadeUpModel {
  std::string golden;
  nlohmann::json changes;
  bool together = false;  // Experts in one tensor each, as transformers 5.x stores them.

  friend void PrintTo(const MadeUpModel& model, std::ostream* to) { *to << model.golden << model.changes; }

  void Write(const TestFolder& folder) const {
    nlohmann::json json = JsonOf(std::string(C3PO_TESTDATA_DIR) + "/model/" + golden + "/config.json");
    json.update(changes);
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
};

// A folder and what was made of it.
class QuantizedFolder {
 public:
  void Quantize(WeightFormat format, const std::function<void(QuantizeOptions&)>& change = nullptr) {
    QuantizeOptions options;
    options.from = from_;
    options.to = to();
    options.weights = format;
    if (change) change(options);
    result_ = QuantizeFolder(options);
  }
  // Of files that are not made up.
  void From(const std::string& folder) { from_ = folder; }

  const TestFolder& folder() const { return folder_; }
  const std::string& from() const { return from_; }
  std::string to() const { return from_root_ + "/out"; }
  const absl::StatusOr<QuantizeResult>& result() const { return result_; }

 private:
  TestFolder folder_;
  std::string from_root_ = folder_.path() + ".written", from_ = folder_.path();
  absl::StatusOr<QuantizeResult> result_ = absl::UnknownError("not asked");

  struct Cleanup {
    explicit Cleanup(std::string path) : path(std::move(path)) { std::filesystem::create_directories(this->path); }
    ~Cleanup() { std::filesystem::remove_all(path); }
    std::string path;
  } cleanup_{from_root_};
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_QUANTIZE_MADE_UP_FOLDER_H_
