#ifndef C3PO_TESTS_SERVER_MODEL_QUANTIZED_TINY_H_
#define C3PO_TESTS_SERVER_MODEL_QUANTIZED_TINY_H_

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>

#include "server/compute/cpu/cpu_weights.h"
#include "tests/server/compute/tensor_weights.h"
#include "tests/server/model/tiny_model.h"
#include "tests/server/model/tiny_on_aten.h"

namespace c3po {

// A golden model, quantized at load, with a cache of 256 positions.
inline std::unique_ptr<MoeModel> LoadQuantized(const std::string& name, const std::string& weights,
                                               const std::string& arithmetic) {
  MoeModelOptions options;
  options.folder = TinyFolder(name);
  options.dtype = "float32";
  options.arithmetic = arithmetic;
  options.weights = weights;
  options.kv_cache_dtype = "float32";  // As the oracles have them; tests of kv_type_test.cc round them.
  auto model = MoeModel::Load(options);
  EXPECT_TRUE(model.ok()) << model.status();
  EXPECT_TRUE((*model)->AllocateKvCache(SlotsOf(256)).ok());
  return *std::move(model);
}

// What it computes with: the widened weights, in float32, and all others as they are stored.
inline aten::MoeWeights WidenedTensors(const std::string& name, const ModelConfig& config, const std::string& weights) {
  const cpu::CpuWeights packed =
      cpu::PackWeights(config, TinyWeights(name, config), ElementType::kFloat32, cpu::WeightLayout::kPanels, nullptr,
                       weights == "int8" ? WeightFormat::kInt8 : WeightFormat::kInt4);
  aten::MoeWeights tensors = TinyTensors(name, config);
  const auto widen = [](const cpu::WeightView& from, at::Tensor& to) {
    if (from.data == nullptr) return;
    EXPECT_EQ(to.numel(), from.rows * from.columns);
    for (int64_t row = 0; row < from.rows; ++row) {
      cpu::CopyRow(from, row, to.mutable_data_ptr<float>() + row * from.columns);
    }
  };
  widen(packed.embedding, tensors.embedding);
  widen(packed.lm_head, tensors.lm_head);
  for (size_t l = 0; l < tensors.layers.size(); ++l) {
    const cpu::LayerViews& from = packed.layers[l];
    aten::LayerWeights& to = tensors.layers[l];
    widen(from.qkv, to.qkv);
    widen(from.output, to.output);
    widen(from.query_expand, to.query_expand);
    widen(from.kv_expand, to.kv_expand);
    widen(from.experts.gate_up, to.experts.gate_up);
    widen(from.experts.down, to.experts.down);
    widen(from.shared.gate_up, to.shared.gate_up);
    widen(from.shared.down, to.shared.down);
  }
  return tensors;
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_QUANTIZED_TINY_H_
