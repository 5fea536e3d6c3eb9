#ifndef C3PO_TESTS_SERVER_COMPUTE_CUDA_EXPERT_CASE_H_
#define C3PO_TESTS_SERVER_COMPUTE_CUDA_EXPERT_CASE_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "server/compute/cuda/expert_products.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/server/compute/cuda/device_rows.h"

// Feed-forward blocks of many shapes for tests of products over experts, as plain matrices and on the device.
namespace c3po::cuda {

// A feed-forward block: E routed experts of f neurons, k a row, and a network of `shared` neurons in every row.
struct Block {
  int d, f, experts, k, shared, planes;
  int bits = 16;
};

inline double Silu(double x) { return x / (1 + std::exp(-x)); }

// The network's gate and up rows, or those of the shared one where e is `experts`.
struct Weights {
  Weights(const Block& b, std::mt19937& random)
      : block(b),
        gate_up(RandomFloats(b.experts * 2 * b.f, b.d, random)),
        down(RandomFloats(b.d, b.experts * b.f, random)),
        shared_gate_up(RandomFloats(2 * b.shared, b.d, random)),
        shared_down(RandomFloats(b.d, b.shared, random)) {
    if (b.k > 0) {
      routed_in.emplace(PackedLayout::GateUp(b.experts, b.f, b.d, b.planes).WithBits(b.bits), gate_up);
      routed_out.emplace(PackedLayout::SideBySide(b.d, b.experts, b.f, b.planes).WithBits(b.bits), down);
    }
    if (b.shared > 0) {
      shared_in.emplace(PackedLayout::GateUp(1, b.shared, b.d, b.planes).WithBits(b.bits), shared_gate_up);
      shared_out.emplace(PackedLayout::SideBySide(b.d, 1, b.shared, b.planes).WithBits(b.bits), shared_down);
    }
  }
  bool routed() const { return block.k > 0; }
  PackedWeights GateUpView(bool of_shared) const {
    const auto& w = of_shared ? shared_in : routed_in;
    return w ? w->view() : PackedWeights{};
  }
  PackedWeights DownView(bool of_shared) const {
    const auto& w = of_shared ? shared_out : routed_out;
    return w ? w->view() : PackedWeights{};
  }
  // Entries as the product sees them.
  double Gate(bool of_shared, int e, int n, int i, bool up) const {
    const int f = of_shared ? block.shared : block.f;
    const Floats& w = (of_shared ? shared_in : routed_in)->held();
    return w((of_shared ? 0 : e) * 2 * f + (up ? f : 0) + n, i);
  }
  double Down(bool of_shared, int e, int i, int n) const {
    return of_shared ? shared_out->held()(i, n) : routed_out->held()(i, e * block.f + n);
  }

  Block block;
  Floats gate_up, down, shared_gate_up, shared_down;
  std::optional<DeviceWeights> routed_in, routed_out, shared_in, shared_out;
};

enum class Choice { kRandom, kSomeNone, kAllTheSame };

inline std::vector<int> Select(int rows, const Block& block, Choice choice, std::mt19937& random) {
  std::vector<int> selected, order(static_cast<size_t>(block.experts));
  std::iota(order.begin(), order.end(), 0);
  for (int r = 0; r < rows; ++r) {
    if (choice != Choice::kAllTheSame) std::shuffle(order.begin(), order.end(), random);
    for (int j = 0; j < block.k; ++j) {
      const bool none = choice == Choice::kSomeNone && (r % 5 == 4 || (r + j) % 7 == 0);
      selected.push_back(none ? -1 : order[static_cast<size_t>(j)]);
    }
  }
  return selected;
}

// Rows, what they select and with which weights, on the device.
struct Rows {
  Rows(int r, const Block& b, Choice choice, std::mt19937& random)
      : rows(r),
        block(b),
        selected(Select(r, b, choice, random)),
        x(RandomFloats(r, b.d, random)),
        weights(RandomFloats(1, std::max(1, r * b.k), random)),
        gates(RandomFloats(1, r, random)),
        in(x, b.planes, false),
        device_selected(selected),
        device_weights(weights, weights.columns),
        device_gates(gates, gates.columns) {}
  // The rows from `first` on.
  ExpertSelection Selection(int first, int count) const {
    return {count, block.k, block.experts, device_selected.data() + first * block.k};
  }
  ActivationPlanes From(const ActivationPlanes& planes, int64_t first) const {
    return {planes.data + first * planes.stride, planes.plane_stride, planes.stride};
  }

  int rows;
  Block block;
  std::vector<int> selected;
  Floats x, weights, gates;
  DevicePlanes in;
  DeviceArray<int> device_selected;
  DeviceFloats device_weights, device_gates;
};

inline int Padded(int neurons) { return static_cast<int>(RoundUp(neurons, 16)); }

// What gate/up leaves.
struct Activation {
  Activation(int rows, const Block& b)
      : routed(std::max(1, rows * b.k), std::max(1, b.f), b.planes),
        shared(rows, std::max(1, b.shared), b.planes),
        gate_up(std::max(1, rows * b.k), 2 * Padded(b.f), 2 * Padded(b.f)),
        shared_gate_up(rows, 2 * Padded(b.shared), 2 * Padded(b.shared)) {}
  DevicePlanes routed, shared;
  DeviceFloats gate_up, shared_gate_up;
};

inline ExpertProductArgs GateUpArgs(const Weights& weights, const Rows& rows, int first, int count,
                                    const Activation& out) {
  ExpertProductArgs args;
  args.selection = rows.Selection(first, count);
  args.routed.weights = weights.GateUpView(false);
  args.shared.weights = weights.GateUpView(true);
  args.routed.scale = rows.device_weights.data() + first * weights.block.k;
  args.shared.scale = rows.device_gates.data() + first;
  args.routed.in = args.shared.in = rows.From(rows.in.view(), first);
  args.routed.planes_out = out.routed.view();
  args.shared.planes_out = out.shared.view();
  args.routed.gate_up = out.gate_up.data();
  args.shared.gate_up = out.shared_gate_up.data();
  args.multiprocessors = 3;
  return args;
}

inline void RunGateUp(const Weights& weights, const Rows& rows, int first, int count, const Activation& out,
                      uint64_t seed = 0) {
  host_cuda::SetSeed(seed);
  ASSERT_EQ(LaunchGateUp(GateUpArgs(weights, rows, first, count, out), nullptr), nullptr);
}

// A kind's pairs: the row of each, its expert or -1, its scale.
struct Pair {
  int row, expert;
  float scale;
};
inline std::vector<Pair> PairsOf(const Rows& rows, bool of_shared) {
  std::vector<Pair> pairs;
  if (of_shared) {
    for (int r = 0; r < rows.rows; ++r) pairs.push_back({r, 0, rows.gates(0, r)});
  } else {
    for (int i = 0; i < rows.rows * rows.block.k; ++i) {
      pairs.push_back({i / rows.block.k, rows.selected[static_cast<size_t>(i)], rows.weights(0, i)});
    }
  }
  return pairs;
}

inline const Block kBlocks[] = {
    {40, 24, 5, 2, 0, 1},
    {40, 24, 5, 2, 0, 3},  // odd shapes
    {40, 24, 5, 2, 40, 1},
    {40, 40, 5, 2, 24, 3},  // with a shared expert
    {40, 0, 0, 0, 24, 1},
    {24, 0, 0, 0, 40, 3},  // a dense layer
    {600, 24, 3, 1, 0, 1},
    {24, 600, 3, 3, 0, 1},
    {300, 24, 3, 1, 0, 3},
    {24, 300, 40, 3, 20, 3},  // sums of all warps
    // Of 8 and 4 bits: an odd number of chunks, one that is cut, and steps that all warps share.
    {40, 24, 5, 2, 40, 1, 8},
    {72, 40, 5, 2, 24, 3, 8},
    {24, 0, 0, 0, 40, 3, 8},
    {600, 24, 3, 1, 0, 1, 8},
    {40, 24, 5, 2, 40, 1, 4},
    {72, 40, 5, 2, 24, 3, 4},
    {40, 0, 0, 0, 24, 1, 4},
    {1100, 24, 3, 1, 0, 1, 4},
    {24, 300, 40, 3, 20, 3, 4},
};
inline constexpr int kRowCounts[] = {1, 3, 8, 9, 64, 70};

inline std::string Named(const Block& b, int rows, bool of_shared) {
  return "d " + std::to_string(b.d) + " f " + std::to_string(b.f) + " E " + std::to_string(b.experts) + " shared " +
         std::to_string(b.shared) + " planes " + std::to_string(b.planes) + " bits " + std::to_string(b.bits) +
         " rows " + std::to_string(rows) + (of_shared ? ": shared" : "");
}

// What of a rounded number the kernel's float32 may have rounded the other way.
inline double RoundingTolerance(int planes) { return planes == 1 ? 0x1p-8 : 1e-6; }

template <class Check>
void ForEachCase(const Check& check) {
  std::mt19937 random(11);
  for (const Block& block : kBlocks) {
    const Weights weights(block, random);
    for (const int rows : kRowCounts) {
      for (const Choice choice : {Choice::kRandom, Choice::kSomeNone, Choice::kAllTheSame}) {
        // The wide ones are slow to check.
        if ((block.d > 40 || block.f > 40) &&
            (rows == 8 || rows == 64 || (rows == 70) != (choice == Choice::kAllTheSame))) {
          continue;
        }
        if (block.bits != 16 && (choice == Choice::kRandom || rows == 3 || rows == 8)) continue;  // Each kernel twice.
        check(weights, Rows(rows, block, choice, random));
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

inline Floats RunMix(ExpertMixArgs args, int d, uint64_t seed = 0) {
  host_cuda::SetSeed(seed);
  const DeviceFloats out(args.selection.rows, d, d + 3);
  args.out = out.data();
  args.out_stride = out.stride();
  EXPECT_EQ(LaunchExpertMix(args, nullptr), nullptr);
  EXPECT_TRUE(out.IsUntouchedBeyond(d));
  return out.Read(args.selection.rows, d);
}

// What the way back through down and SiLU leaves.
struct Gradient {
  Gradient(int rows, const Block& b)
      : routed(std::max(1, rows * b.k), 2 * Padded(b.f), b.planes),
        shared(rows, 2 * Padded(b.shared), b.planes),
        dots(std::max(1, rows * b.k), UnitsOfDots(b.f), UnitsOfDots(b.f)),
        shared_dots(rows, UnitsOfDots(b.shared), UnitsOfDots(b.shared)) {}
  DevicePlanes routed, shared;
  DeviceFloats dots, shared_dots;
};

inline ExpertProductArgs BackwardArgs(const Weights& weights, const Rows& rows, int first, int count,
                                      const Activation& tape, const DevicePlanes& dy, const Gradient& out) {
  ExpertProductArgs args;
  args.selection = rows.Selection(first, count);
  args.routed.weights = weights.DownView(false);
  args.shared.weights = weights.DownView(true);
  args.routed.scale = rows.device_weights.data() + first * weights.block.k;
  args.shared.scale = rows.device_gates.data() + first;
  args.routed.in = args.shared.in = rows.From(dy.view(), first);
  args.routed.gate_up = tape.gate_up.data() + int64_t{first} * weights.block.k * tape.gate_up.stride();
  args.shared.gate_up = tape.shared_gate_up.data() + int64_t{first} * tape.shared_gate_up.stride();
  args.routed.planes_out = out.routed.view();
  args.shared.planes_out = out.shared.view();
  args.routed.dots = out.dots.data();
  args.shared.dots = out.shared_dots.data();
  args.multiprocessors = 3;
  return args;
}

}  // namespace c3po::cuda

#endif  // C3PO_TESTS_SERVER_COMPUTE_CUDA_EXPERT_CASE_H_
