#ifndef C3PO_SERVER_COMPUTE_CUDA_EXPERT_KINDS_H_
#define C3PO_SERVER_COMPUTE_CUDA_EXPERT_KINDS_H_

#include "index/base/cuda/device.h"
#include "server/compute/cuda/expert_products.h"
#include "server/compute/cuda/row_planes.h"
#include "server/compute/cuda/tile_products.h"

// Kernel code: what the products over experts make of their sums. A kind has
//   kBands       units whose sums are needed together
//   kTransposed  whether W is multiplied from the other side
//   kInByPair    whether the rows that enter are by pair, or by row
//   Units(w)     how often kBands units of 16 outputs fit into w's outputs
//   Store        which writes what 16 outputs of two pairs become
namespace c3po::cuda {

// A lane's sums of one item: of outputs n = g and g + 8 and of two pairs, of which -1 is none.
struct ItemSums {
  int unit;
  int pair[2];
  Sums4 band[2];  // x[2 * half + i]: output g + 8 half of pair i; band 1: up
};

C3PO_DEVICE float Sigmoid(float x) { return device::Divide(1.0f, device::Add(1.0f, device::Exp(-x))); }

template <int kPlanes>
C3PO_DEVICE void StoreOne(const ActivationPlanes& planes, int64_t row, int64_t position, float x) {
  uint16_t split[kPlanes];
  Split<kPlanes>(x, split);
  C3PO_UNROLL
  for (int p = 0; p < kPlanes; ++p) planes.data[p * planes.plane_stride + row * planes.stride + position] = split[p];
}

struct GateUpProduct {
  static constexpr int kBands = 2;
  static constexpr bool kTransposed = false, kInByPair = false;
  static constexpr int Units(const PackedWeights& w) { return Bands(w.rows) / 2; }

  template <int kPlanes>
  C3PO_DEVICE static void Store(const ExpertProductArgs&, const ExpertNetworks& networks, const ItemSums& item) {
    const int padded = networks.weights.rows / 2;
    C3PO_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int64_t pair = item.pair[i];
      if (pair < 0) continue;
      const float scale = networks.scale != nullptr ? networks.scale[pair] : 1.0f;
      C3PO_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int n = item.unit * kBandRows + device::Lane() / 4 + 8 * half;
        const float gate = item.band[0].x[2 * half + i], up = item.band[1].x[2 * half + i];
        if (networks.gate_up != nullptr) {
          networks.gate_up[pair * 2 * padded + GateRow(n)] = gate;
          networks.gate_up[pair * 2 * padded + UpRow(n)] = up;
        }
        const float silu = device::Multiply(gate, Sigmoid(gate));
        StoreOne<kPlanes>(networks.planes_out, pair, n, device::Multiply(device::Multiply(silu, up), scale));
        // What pads f' to 32.
        if (n + kBandRows >= padded && padded % kChunkColumns != 0) {
          StoreOne<kPlanes>(networks.planes_out, pair, n + kBandRows, 0.0f);
        }
      }
    }
  }
};

struct DownBackwardProduct {
  static constexpr int kBands = 1;
  static constexpr bool kTransposed = true, kInByPair = false;
  static constexpr int Units(const PackedWeights& w) { return UnitsOf<true>(w); }

  template <int kPlanes>
  C3PO_DEVICE static void Store(const ExpertProductArgs&, const ExpertNetworks& networks, const ItemSums& item) {
    const int padded = static_cast<int>(RoundUp(networks.weights.columns, kBandRows)), units = Units(networks.weights);
    C3PO_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int64_t pair = item.pair[i];
      const float scale = pair >= 0 && networks.scale != nullptr ? networks.scale[pair] : 1.0f;
      float dot = 0;
      C3PO_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int n = OutputOf<true>(item.unit, device::Lane() / 4 + 8 * half);
        if (pair < 0 || n >= padded) continue;
        const float t = item.band[0].x[2 * half + i], dt = device::Multiply(t, scale);
        const float gate = networks.gate_up[pair * 2 * padded + GateRow(n)];
        const float up = networks.gate_up[pair * 2 * padded + UpRow(n)];
        const float s = Sigmoid(gate), silu = device::Multiply(gate, s);
        dot = device::FusedMultiplyAdd(t, device::Multiply(silu, up), dot);
        const float slope = device::Multiply(s, device::FusedMultiplyAdd(gate, device::Subtract(1.0f, s), 1.0f));
        const float dgate = device::Multiply(device::Multiply(dt, up), slope);
        const int64_t chunk = n / kBandRows * kChunkColumns;
        StoreOne<kPlanes>(networks.planes_out, pair, chunk + PositionOf(n % kBandRows), dgate);
        StoreOne<kPlanes>(networks.planes_out, pair, chunk + PositionOf(n % kBandRows + kBandRows),
                          device::Multiply(dt, silu));
      }
      C3PO_UNROLL
      for (int mask = 4; mask < 32; mask *= 2) dot = device::Add(dot, device::ShuffleXor(dot, mask));
      if (pair >= 0 && device::Lane() / 4 == 0) networks.dots[pair * units + item.unit] = dot;
    }
  }
};

struct DownApartProduct {
  static constexpr int kBands = 1;
  static constexpr bool kTransposed = false, kInByPair = true;
  static constexpr int Units(const PackedWeights& w) { return UnitsOf<false>(w); }

  template <int kPlanes>
  C3PO_DEVICE static void Store(const ExpertProductArgs& args, const ExpertNetworks& networks, const ItemSums& item) {
    C3PO_UNROLL
    for (int i = 0; i < 2; ++i) {
      C3PO_UNROLL
      for (int half = 0; half < 2; ++half) {
        const int m = item.unit * kBandRows + device::Lane() / 4 + 8 * half;
        if (item.pair[i] < 0 || m >= networks.weights.rows) continue;
        networks.floats_out[item.pair[i] * args.floats_stride + m] = item.band[0].x[2 * half + i];
      }
    }
  }
};

// The product of a kind whose pairs are listed (many_experts.cu).
template <class ProductKind>
Error LaunchManyExperts(const ExpertProductArgs& args, Stream stream);

}  // namespace c3po::cuda

#endif  // C3PO_SERVER_COMPUTE_CUDA_EXPERT_KINDS_H_
