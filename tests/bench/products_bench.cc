// Products of activations with a weight matrix: ours against libtorch's, alternating, on the shapes of the default
// model and of the benchmark model.
//   c3po_bench_products [milliseconds=100] [float32|bfloat16|pairs] [shape]      time per shape and way; one shape
//   only, or "experts": all of a model's experts, without libtorch; or "quantized" in place of a type: weights of 8 and
//   4 bits beside those of bfloat16, without libtorch, on the shapes of OLMoE
// Ours reads the weights as the server keeps them, in panels, or with "pairs" in panels of pairs, which the processor's
// bfloat16 unit multiplies where it has one; libtorch's are float32 always, as its product of bfloat16
// is another one. Prints weight bytes per second (what decode is bound by), operations per second (what prefill is
// bound by) and the median of libtorch's time over ours.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "server/compute/cpu/bfloat16_products.h"
#include "server/compute/cpu/matrix_products.h"
#include "server/compute/cpu/panels.h"
#include "server/compute/cpu/thread_pool.h"
#include "tests/bench/timing.h"
#include "tests/server/compute/cpu/quantized_matrix.h"

namespace c3po {
namespace {

struct Shape {
  const char* name;
  int64_t n, k;
};

void Compare(const char* form, const Shape& shape, int64_t rows, double budget, const std::function<void()>& ours,
             const std::function<void()>& torch, int weight_bytes) {
  std::vector<double> own, other, ratio;
  ours();
  torch();
  for (double spent = 0; spent < 2 * budget; spent += own.back() + other.back()) {
    own.push_back(Seconds(ours));
    other.push_back(Seconds(torch));
    ratio.push_back(other.back() / own.back());
  }
  const double seconds = Median(own), weights = static_cast<double>(shape.n * shape.k);
  std::printf(
      "%-6s %-10s %6lld x %-5lld rows %4lld  %9.1f us  %6.1f GB/s  %6.1f GFLOP/s  libtorch %9.1f us  ratio %.2f\n",
      form, shape.name, static_cast<long long>(shape.n), static_cast<long long>(shape.k), static_cast<long long>(rows),
      seconds * 1e6, weights * weight_bytes / seconds * 1e-9, 2 * weights * static_cast<double>(rows) / seconds * 1e-9,
      Median(other) * 1e6, Median(ratio));
  std::fflush(stdout);
}

// Experts of a layer as one job, each with rows of its own: the two products of a forward pass, over weights that are
// out of cache when their turn comes. Down matrices are columns of a wide one, as in the model.
void MeasureExperts(bool bfloat16, cpu::WeightLayout layout, double budget) {
  constexpr int64_t kLayers = 12, kExperts = 32, kHidden = 512, kNeurons = 256;
  const auto weights = [&](int64_t n, int64_t k) {
    const at::Tensor w = at::randn({n, k}, at::kFloat).to(bfloat16 ? at::kBFloat16 : at::kFloat);
    cpu::PackPanels(w.mutable_data_ptr(), layout, bfloat16, n, k);
    return w;
  };
  std::vector<at::Tensor> gate_up, down;
  gate_up.push_back(weights(kExperts * 2 * kNeurons, kHidden));
  down.push_back(weights(kHidden, kExperts * kNeurons));
  while (down.size() < kLayers) gate_up.push_back(gate_up[0].clone()), down.push_back(down[0].clone());
  const auto view = [&](const at::Tensor& w) -> cpu::WeightView {
    return {w.const_data_ptr(), bfloat16, w.size(0), w.size(1), layout};
  };
  for (const int64_t rows : {1, 2, 3, 4, 6, 8, 12, 64}) {
    const at::Tensor x = at::randn({rows, kHidden}, at::kFloat), activation = at::randn({rows, kNeurons}, at::kFloat);
    const at::Tensor y = at::empty({kExperts, rows, 2 * kNeurons}), z = at::empty({kExperts, rows, kHidden});
    const auto layer = [&](int64_t l) {
      std::vector<cpu::DotProduct> in, out;
      for (int64_t e = 0; e < kExperts; ++e) {
        in.push_back({{x.const_data_ptr<float>(), kHidden, rows, nullptr},
                      view(gate_up[l]).Rows(e * 2 * kNeurons, (e + 1) * 2 * kNeurons),
                      {y[e].mutable_data_ptr<float>(), 2 * kNeurons, nullptr}});
        out.push_back({{activation.const_data_ptr<float>(), kNeurons, rows, nullptr},
                       view(down[l]).Columns(e * kNeurons, (e + 1) * kNeurons),
                       {z[e].mutable_data_ptr<float>(), kHidden, nullptr}});
      }
      cpu::MultiplyTransposed(in);
      cpu::MultiplyTransposed(out);
    };
    std::vector<double> seconds;
    for (double spent = 0; spent < 2 * budget; spent += seconds.back()) {
      seconds.push_back(Seconds([&] {
        for (int64_t l = 0; l < kLayers; ++l) layer(l);
      }));
    }
    const double median = Median(seconds), count = double{kLayers * kExperts * 3 * kHidden * kNeurons};
    std::printf("dot    experts    %d layers of %d  rows %4d  %9.1f us  %6.1f GB/s  %6.1f GFLOP/s\n", int{kLayers},
                int{kExperts}, static_cast<int>(rows), median * 1e6, count * (bfloat16 ? 2 : 4) / median * 1e-9,
                2 * count * static_cast<double>(rows) / median * 1e-9);
    std::fflush(stdout);
  }
}

// Dot products in bfloat16 and with weights of 8 and 4 bits, in turn: each weight is out of cache when its
// turn comes.
void MeasureQuantized(double budget, std::string_view only) {
  const bool unit = cpu::FastestBfloat16Unit() != cpu::Bfloat16Unit::kNone;
  const cpu::WeightLayout of_bfloat16 = unit ? cpu::WeightLayout::kPairs : cpu::WeightLayout::kPanels;
  for (const Shape& shape : {Shape{"gate_up", 2048, 2048}, Shape{"gate", 1024, 2048}, Shape{"down", 2048, 1024},
                             Shape{"lm_head", 50304, 2048}}) {
    if (!only.empty() && only != shape.name) continue;
    const auto copies = std::max<int64_t>(1, (128 << 20) / (shape.n * shape.k));
    std::vector<at::Tensor> halves;
    std::vector<std::unique_ptr<cpu::QuantizedMatrix>> bytes, nibbles;
    for (int64_t i = 0; i < copies; ++i) {
      const at::Tensor w = at::randn({shape.n, shape.k}, at::kFloat);
      const float* const values = w.const_data_ptr<float>();
      const std::vector<float> all(values, values + w.numel());
      bytes.push_back(std::make_unique<cpu::QuantizedMatrix>(all, shape.n, shape.k, cpu::WeightLayout::kInt8));
      nibbles.push_back(std::make_unique<cpu::QuantizedMatrix>(all, shape.n, shape.k, cpu::WeightLayout::kInt4));
      for (cpu::QuantizedMatrix* const matrix : {bytes.back().get(), nibbles.back().get()}) {
        matrix->view.rounds_activations = true;
        matrix->values = {};
      }
      halves.push_back(w.to(at::kBFloat16));
      cpu::PackPanels(halves.back().mutable_data_ptr(), of_bfloat16, true, shape.n, shape.k);
    }
    size_t next = 0;
    for (const int64_t rows : {1, 2, 4, 8, 32, 512}) {
      const at::Tensor x = at::randn({rows, shape.k}, at::kFloat), y = at::empty({rows, shape.n}, at::kFloat);
      const auto seconds = [&](const cpu::WeightView& w) {
        return Seconds([&] {
          cpu::MultiplyTransposed({{{x.const_data_ptr<float>(), shape.k, rows, nullptr},
                                    w,
                                    {y.mutable_data_ptr<float>(), shape.n, nullptr}}});
        });
      };
      std::vector<double> two, one, half, one_ratio, half_ratio;
      for (double spent = 0; spent < 3 * budget; spent += two.back() + one.back() + half.back(), ++next) {
        const size_t i = next % halves.size();
        two.push_back(seconds({halves[i].const_data_ptr(), true, shape.n, shape.k, of_bfloat16}));
        one.push_back(seconds(bytes[i]->view));
        half.push_back(seconds(nibbles[i]->view));
        one_ratio.push_back(two.back() / one.back());
        half_ratio.push_back(two.back() / half.back());
      }
      const auto rate = [&](const std::vector<double>& times, double bits) {
        return static_cast<double>(shape.n * shape.k) * bits / 8 / Median(times) * 1e-9;
      };
      std::printf(
          "dot    %-10s %6lld x %-5lld rows %4lld  bfloat16 %9.1f us %5.1f GB/s  int8 %9.1f us %5.1f GB/s ratio %.2f  "
          "int4 %9.1f us %5.1f GB/s ratio %.2f\n",
          shape.name, static_cast<long long>(shape.n), static_cast<long long>(shape.k), static_cast<long long>(rows),
          Median(two) * 1e6, rate(two, 16), Median(one) * 1e6, rate(one, 8.5), Median(one_ratio), Median(half) * 1e6,
          rate(half, 4.5), Median(half_ratio));
      std::fflush(stdout);
    }
  }
}

int Main(int argc, char** argv) {
  const double budget = (argc > 1 ? std::max(1, std::atoi(argv[1])) : 100) * 1e-3;
  const std::string_view stored_as = argc > 2 ? argv[2] : "float32";
  const std::string_view only = argc > 3 ? argv[3] : "";
  if (stored_as == "quantized") return MeasureQuantized(budget, only), 0;
  const bool pairs = stored_as == "pairs", bfloat16 = pairs || stored_as == "bfloat16";
  const cpu::WeightLayout layout = pairs ? cpu::WeightLayout::kPairs : cpu::WeightLayout::kPanels;
  const int weight_bytes = bfloat16 ? 2 : 4;
  const c10::InferenceMode inference;
  at::set_num_threads(cpu::ThreadPool::Shared().threads());
  std::printf("%d threads of ours, %d of libtorch; weights %.*s, bfloat16 unit %s\n",
              cpu::ThreadPool::Shared().threads(), at::get_num_threads(), static_cast<int>(stored_as.size()),
              stored_as.data(), pairs ? cpu::Bfloat16UnitName(cpu::FastestBfloat16Unit()) : "not used");
  const Shape shapes[] = {{"qkv", 960, 576},       {"output", 576, 576}, {"gate_up", 3072, 576}, {"down", 1536, 576},
                          {"lm_head", 49152, 576}, {"qkv", 1536, 512},   {"expert", 512, 512}};
  for (const Shape& shape : shapes) {
    if (!only.empty() && only != shape.name) continue;
    // Copies enough that none is in cache when its turn comes, as the layers of a model.
    const auto copies = std::max<int64_t>(1, (256 << 20) / (shape.n * shape.k * 4));
    std::vector<at::Tensor> weights, stored;
    for (int64_t i = 0; i < copies; ++i) {
      weights.push_back(at::randn({shape.n, shape.k}, at::kFloat));
      stored.push_back(bfloat16 ? weights.back().to(at::kBFloat16) : weights.back().clone());
      cpu::PackPanels(stored.back().mutable_data_ptr(), layout, bfloat16, shape.n, shape.k);
    }
    size_t next = 0;
    for (const int64_t rows : {1, 3, 4, 12, 32, 64, 512}) {
      if (rows * shape.n > 4096 * 4096) continue;
      const at::Tensor x = at::randn({rows, shape.k}, at::kFloat), a = at::randn({rows, shape.n}, at::kFloat);
      const auto weight = [&]() -> const at::Tensor& { return weights[next++ % weights.size()]; };
      const auto own = [&]() -> cpu::WeightView {
        return {stored[next++ % stored.size()].const_data_ptr(), bfloat16, shape.n, shape.k, layout};
      };
      Compare(
          "dot", shape, rows, budget,
          [&] {
            const at::Tensor y = at::empty({rows, shape.n}, at::kFloat);
            cpu::MultiplyTransposed({{{x.const_data_ptr<float>(), shape.k, rows, nullptr},
                                      own(),
                                      {y.mutable_data_ptr<float>(), shape.n, nullptr}}});
          },
          [&] { at::linear(x, weight()); }, weight_bytes);
      Compare(
          "outer", shape, rows, budget,
          [&] {
            const at::Tensor y = at::empty({rows, shape.k}, at::kFloat);
            cpu::Multiply({{{a.const_data_ptr<float>(), shape.n, rows, nullptr},
                            own(),
                            {y.mutable_data_ptr<float>(), shape.k, nullptr}}});
          },
          [&] { at::matmul(a, weight()); }, weight_bytes);
    }
  }
  if (only.empty() || only == "experts") MeasureExperts(bfloat16, layout, budget);
  return 0;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) { return c3po::Main(argc, argv); }
