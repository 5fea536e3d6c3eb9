#ifndef C3PO_TESTS_SERVER_MODEL_SYNTHETIC_MODEL_H_
#define C3PO_TESTS_SERVER_MODEL_SYNTHETIC_MODEL_H_

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/model/config/tensor_plan.h"
#include "server/model/moe_model.h"
#include "tests/server/model/tiny_model.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {

// The models of tests/golden/config, whose weights are functions of their tensors' names.

// Entry i: splitmix64's i-th output from FNV-1a of the name, as u in [-1, 1); 1 + 0.2 u in a norm, else 0.45 u.
inline std::vector<float> SyntheticTensor(const std::string& name, int64_t elements) {
  uint64_t state = 0xCBF29CE484222325;
  for (const char byte : name) state = (state ^ static_cast<unsigned char>(byte)) * 0x100000001B3;
  const bool norm = absl::EndsWith(name, "norm.weight");
  std::vector<float> values(static_cast<size_t>(elements));
  for (float& value : values) {
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    const double u = static_cast<double>((z ^ (z >> 31)) >> 40) / (1 << 23) - 1;
    value = static_cast<float>(norm ? 1 + 0.2 * u : 0.45 * u);
  }
  return values;
}

struct StoredTensor {
  std::vector<int64_t> shape;
  std::vector<float> values;
};
using StoredTensors = std::map<std::string, StoredTensor>;

// The bytes of a model.safetensors, in float32.
inline std::string SafetensorsOf(const StoredTensors& tensors) {
  std::string header = "{", data;
  for (const auto& [name, tensor] : tensors) {
    const size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(tensor.values.data()), tensor.values.size() * sizeof(float));
    absl::StrAppend(&header, header.size() > 1 ? "," : "", "\"", name, R"(":{"dtype":"F32","shape":)",
                    ShapeString(tensor.shape), R"(,"data_offsets":[)", begin, ",", data.size(), "]}");
  }
  return SafetensorsText(header + "}", data);
}

// What a checkpoint of this configuration holds, under the names of transformers 4.57.
inline StoredTensors SyntheticTensors(const ModelConfig& config) {
  StoredTensors tensors;
  const auto add = [&](const PlannedTensor& planned) {
    const int64_t elements =
        std::accumulate(planned.shape.begin(), planned.shape.end(), int64_t{1}, std::multiplies<>());
    tensors[planned.name] = {planned.shape, SyntheticTensor(planned.name, elements)};
    return absl::OkStatus();
  };
  EXPECT_TRUE(VisitTensors(
                  config, [](const std::string&) { return false; }, add)
                  .ok());
  return tensors;
}

inline constexpr int kGoldenTokens = 40;

// The logits that the goldens hold: of every sixth token, after their 40 tokens.
inline std::vector<float> GoldenLogitsOf(const std::string& folder) {
  constexpr int kVocabulary = 48, kStride = 6;
  MoeModelOptions options;
  options.folder = folder;
  const auto model = MoeModel::Load(options);
  EXPECT_TRUE(model.ok()) << model.status();
  if (!model.ok() || !(*model)->AllocateKvCache(SlotsOf(64)).ok()) return {};
  std::vector<int32_t> tokens(kGoldenTokens);
  for (int i = 0; i < kGoldenTokens; ++i) tokens[i] = (7 * i * i + 3 * i + 1) % kVocabulary;
  const auto out = RunSegments(**model, {PromptSegment({{0, kGoldenTokens}}, tokens)});
  EXPECT_TRUE(out.ok()) << out.status();
  std::vector<float> logits;
  for (int token = 0; out.ok() && token < kVocabulary; token += kStride)
    logits.push_back(out->at(0).readout.logits.at(token));
  return logits;
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_SYNTHETIC_MODEL_H_
