#ifndef C3PO_SERVER_COMPUTE_CPU_LAYER_VIEWS_H_
#define C3PO_SERVER_COMPUTE_CPU_LAYER_VIEWS_H_

#include <cstdint>

#include "server/compute/cpu/matrix_products.h"
#include "server/model/config/model_config.h"

namespace c3po::cpu {

// Where a layer's weights lie, as the kernels read them. Views of CpuWeights, which live longer. Shapes are those of
// WeightRole; a pointer is null, and a view's data, where the layer has no such weights.

struct NetworkViews {
  WeightView gate_up;   // [n 2f, d]: gate rows, then up rows, of each
  WeightView down;      // [d, n f]
  int64_t count = 0;    // n
  int64_t neurons = 0;  // f

  bool exists() const { return down.data != nullptr; }
  WeightView GateUp(int64_t e) const { return Part(gate_up.Rows(e * 2 * neurons, (e + 1) * 2 * neurons), gate_up, e); }
  WeightView Down(int64_t e) const { return Part(down.Columns(e * neurons, (e + 1) * neurons), down, e); }

 private:
  static WeightView Part(WeightView part, const WeightView& whole, int64_t e) {
    part.observer = whole.observer;
    part.observed_unit = e;
    return part;
  }
};

struct LayerViews {
  const float* attention_norm = nullptr;
  WeightView qkv;
  const float* qkv_bias = nullptr;
  const float *q_norm = nullptr, *k_norm = nullptr;
  WeightView output;
  const float* output_bias = nullptr;
  const float *query_latent_norm = nullptr, *kv_latent_norm = nullptr;
  WeightView query_expand, kv_expand;

  const float* feed_forward_norm = nullptr;
  WeightView router;  // exists in MoE layers
  NetworkViews experts, shared;
  WeightView shared_gate;

  bool moe() const { return router.data != nullptr; }
};

// Row `row` of a matrix in any layout, as float32, to out [columns].
void CopyRow(const WeightView& w, int64_t row, float* out);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_LAYER_VIEWS_H_
