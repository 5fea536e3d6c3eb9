#ifndef C3PO_TESTS_SERVER_MODEL_TINY_MODEL_H_
#define C3PO_TESTS_SERVER_MODEL_TINY_MODEL_H_

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "server/compute/device.h"
#include "server/compute/model_weights.h"
#include "server/model/moe_model.h"
#include "server/weights/checkpoint.h"
#include "tests/server/owned_segment.h"

namespace c3po {

// The tiny golden models, and what tests ask of one.

inline std::string TinyFolder(const std::string& name) { return std::string(C3PO_TESTDATA_DIR) + "/model/" + name; }

// With a cache of 256 positions, kept in `kv` on the CPU: what else is measured there is not to see its rounding.
inline std::unique_ptr<MoeModel> LoadTiny(const std::string& name, const std::string& dtype = "float32",
                                          const std::string& device = "cpu", const std::string& arithmetic = "float32",
                                          const std::string& kv = "float32") {
  MoeModelOptions options;
  options.folder = TinyFolder(name);
  options.dtype = dtype;
  options.device = device;
  options.arithmetic = arithmetic;
  options.kv_cache_dtype = device == kCpuDevice ? kv : "auto";
  auto model = MoeModel::Load(options);
  EXPECT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE((*model)->AllocateKvCache(SlotsOf(256)).ok());
  return *std::move(model);
}

// The weights of the golden model whose configuration this is, or one that differs in nothing that sizes weights.
inline ModelWeights TinyWeights(const std::string& name, const ModelConfig& config) {
  auto checkpoint = Checkpoint::Open(TinyFolder(name));
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto weights = ViewWeights(*std::move(checkpoint), config);
  EXPECT_TRUE(weights.ok()) << weights.status();
  return *std::move(weights);
}

// Those weights under that configuration on the CPU, with a cache of 256 positions.
inline std::unique_ptr<MoeModel> PackTiny(const std::string& name, const ModelConfig& config,
                                          const WeightPlacement& placement) {
  auto backend = MakeBackend(config, TinyWeights(name, config), placement);
  EXPECT_TRUE(backend.ok()) << backend.status();
  auto model = MoeModel::OnBackend(config, *std::move(backend), int64_t{1} << 20);
  EXPECT_TRUE(model->AllocateKvCache(SlotsOf(256)).ok());
  return model;
}

inline OwnedSegment PromptSegment(std::vector<KvRun> kv, std::vector<int32_t> tokens, int start = 0) {
  OwnedSegment segment;
  segment.kv = std::move(kv);
  segment.start = start;
  segment.tokens = std::move(tokens);
  return segment;
}

// The standard deviation.
inline double Spread(const std::vector<float>& values) {
  const auto count = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  double sum = 0;
  for (float v : values) sum += (v - mean) * (v - mean);
  return std::sqrt(sum / count);
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_TINY_MODEL_H_
