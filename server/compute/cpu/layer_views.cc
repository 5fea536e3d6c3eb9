#include "server/compute/cpu/layer_views.h"

#include <ATen/core/Tensor.h>

#include <cstring>

#include "server/compute/cpu/panels.h"
#include "server/compute/weight_tensors.h"

namespace c3po::cpu {
namespace {

WeightView ViewOf(const at::Tensor& weights) { return weights.defined() ? WeightsOf(weights) : WeightView(); }
const float* FloatsOf(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

NetworkViews ViewsOf(const ExpertWeights& networks) {
  if (!networks.down.defined()) return {};
  return {WeightsOf(AsOne(networks.gate_up)), WeightsOf(networks.down), networks.count(), networks.neurons()};
}

LayerViews ViewsOf(const LayerWeights& w) {
  LayerViews views;
  views.attention_norm = FloatsOf(w.attention_norm);
  views.qkv = ViewOf(w.qkv);
  views.qkv_bias = FloatsOf(w.qkv_bias);
  views.q_norm = FloatsOf(w.q_norm);
  views.k_norm = FloatsOf(w.k_norm);
  views.output = ViewOf(w.output);
  views.output_bias = FloatsOf(w.output_bias);
  views.query_latent_norm = FloatsOf(w.query_latent_norm);
  views.kv_latent_norm = FloatsOf(w.kv_latent_norm);
  views.query_expand = ViewOf(w.query_expand);
  views.kv_expand = ViewOf(w.kv_expand);
  views.feed_forward_norm = FloatsOf(w.moe_norm);
  views.router = ViewOf(w.router);
  views.experts = ViewsOf(w.experts);
  views.shared = ViewsOf(w.shared);
  views.shared_gate = ViewOf(w.shared_gate);
  return views;
}

}  // namespace

ModelViews::ModelViews(const ModelConfig& model_config, const MoeWeights& weights)
    : config(model_config),
      embedding(WeightsOf(weights.embedding)),
      final_norm(FloatsOf(weights.final_norm)),
      lm_head(WeightsOf(weights.lm_head)) {
  for (const LayerWeights& layer : weights.layers) layers.push_back(ViewsOf(layer));
}

void CopyRow(const WeightView& w, int64_t row, float* out) {
  if (!w.bfloat16) {
    if (w.in_panels()) {
      CopyPanelRow(w.data, w.layout, false, w.columns, row, out);
    } else {
      std::memcpy(out, w.At(row * w.row_stride()), static_cast<size_t>(w.columns) * sizeof(float));
    }
    return;
  }
  // Into the upper half of `out`, from where each entry is widened before it is overwritten.
  auto* const narrow = reinterpret_cast<uint16_t*>(out) + w.columns;
  if (w.in_panels()) {
    CopyPanelRow(w.data, w.layout, true, w.columns, row, narrow);
  } else {
    std::memcpy(narrow, w.At(row * w.row_stride()), static_cast<size_t>(w.columns) * sizeof(uint16_t));
  }
  for (int64_t i = 0; i < w.columns; ++i) {
    uint16_t half;
    std::memcpy(&half, narrow + i, sizeof half);
    const uint32_t bits = uint32_t{half} << 16;
    std::memcpy(out + i, &bits, sizeof bits);
  }
}

}  // namespace c3po::cpu
