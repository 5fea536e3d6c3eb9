#ifndef C3PO_TESTS_GPU_MADE_UP_MODEL_H_
#define C3PO_TESTS_GPU_MADE_UP_MODEL_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "absl/status/status.h"
#include "server/compute/cuda/packed_matrix.h"
#include "server/compute/model_weights.h"
#include "server/compute/rope_table.h"
#include "server/model/config/tensor_plan.h"
#include "tests/bench/value_or_exit.h"

namespace c3po {

// OLMoE-1B-7B's shape (https://huggingface.co/allenai/OLMoE-1B-7B-0924, config.json), or a small one of its family.
inline ModelConfig OlmoeShape(bool tiny) {
  ModelConfig config;
  config.family = ModelConfig::Family::kOlmoe;
  config.architecture = "OlmoeForCausalLM";
  config.hidden_size = tiny ? 48 : 2048;
  config.layers = tiny ? 3 : 16;
  config.heads = config.kv_heads = tiny ? 3 : 16;
  config.head_dim = tiny ? 16 : 128;
  config.intermediate_size = tiny ? 20 : 1024;
  config.experts = tiny ? 8 : 64;
  config.experts_per_token = tiny ? 2 : 8;
  config.vocabulary_size = tiny ? 260 : 50304;
  config.context_window = tiny ? 64 : 4096;
  config.qk_norm = ModelConfig::QkNorm::kWhole;
  config.FillDerived();
  return config;
}

// Every weight is a piece of one list of random numbers, so that a model of any size takes little memory here.
inline ModelWeights MadeUpWeights(const ModelConfig& config) {
  struct Lists {
    std::vector<uint16_t> matrix, ones;
  };
  const auto lists = std::make_shared<Lists>();
  constexpr int64_t kPeriod = 1'000'003;
  constexpr uint16_t kOne = 0x3f80;
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 1 / std::sqrt(static_cast<float>(config.hidden_size)));
  std::vector<uint16_t> period(kPeriod);
  for (uint16_t& value : period) value = cuda::RoundToBfloat16(normal(random));
  ModelWeights weights;
  weights.layers.resize(static_cast<size_t>(config.layers));
  int64_t longest = 0, longest_vector = 0;
  std::vector<PlannedTensor> planned;
  OkOrExit(VisitTensors(
      config, [](const std::string&) { return false; },
      [&](const PlannedTensor& tensor) {
        planned.push_back(tensor);
        if (tensor.shape.size() > 2) return absl::InternalError(tensor.name + " has more than two dimensions");
        const bool vector = tensor.shape.size() == 1;
        const int64_t entries = tensor.shape[0] * (vector ? 1 : tensor.shape[1]);
        (vector ? longest_vector : longest) = std::max(vector ? longest_vector : longest, entries);
        return absl::OkStatus();
      }));
  lists->ones.assign(static_cast<size_t>(longest_vector), kOne);
  lists->matrix.reserve(static_cast<size_t>(longest + 2 * kPeriod));
  while (static_cast<int64_t>(lists->matrix.size()) < longest + kPeriod) {
    lists->matrix.insert(lists->matrix.end(), period.begin(), period.end());
  }
  int64_t begin = 0;
  for (const PlannedTensor& tensor : planned) {
    const bool vector = tensor.shape.size() == 1;
    HostMatrix matrix;
    matrix.type = DType::kBF16;
    matrix.rows = tensor.shape[0];
    matrix.columns = vector ? 1 : tensor.shape[1];
    const uint16_t* const first = vector ? lists->ones.data() : lists->matrix.data() + begin;
    matrix.bytes = {reinterpret_cast<const std::byte*>(first), static_cast<size_t>(matrix.rows * matrix.columns * 2)};
    begin = (begin + 7919) % kPeriod;
    const bool outside = tensor.use.role == WeightRole::kEmbedding || tensor.use.role == WeightRole::kFinalNorm ||
                         tensor.use.role == WeightRole::kHead;
    (outside ? weights.outside : weights.layers[static_cast<size_t>(tensor.use.layer)]).push_back({tensor.use, matrix});
  }
  weights.source = lists;
  return weights;
}

// Of a model whose rotary frequencies are not stretched.
inline RopeTable PlainRopeTable(const ModelConfig& config) {
  RopeTable table;
  table.positions = config.context_window;
  table.half = config.rope_dim / 2;
  const auto entries = static_cast<size_t>(table.positions * table.half);
  const auto cos = std::shared_ptr<float>(new float[entries], std::default_delete<float[]>());
  const auto sin = std::shared_ptr<float>(new float[entries], std::default_delete<float[]>());
  for (int64_t p = 0; p < table.positions; ++p) {
    for (int64_t i = 0; i < table.half; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / config.rope_dim);
      cos.get()[p * table.half + i] = static_cast<float>(std::cos(angle));
      sin.get()[p * table.half + i] = static_cast<float>(std::sin(angle));
    }
  }
  table.cos = cos;
  table.sin = sin;
  return table;
}

}  // namespace c3po

#endif  // C3PO_TESTS_GPU_MADE_UP_MODEL_H_
