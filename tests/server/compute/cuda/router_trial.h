#ifndef C3PO_TESTS_SERVER_COMPUTE_CUDA_ROUTER_TRIAL_H_
#define C3PO_TESTS_SERVER_COMPUTE_CUDA_ROUTER_TRIAL_H_

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "server/compute/cuda/router.h"
#include "tests/host_cuda/device_array.h"
#include "tests/server/compute/cuda/attention_trial.h"

namespace c3po::cuda {

inline constexpr float kEps = 1e-5f;

inline size_t At(int64_t i) { return static_cast<size_t>(i); }

inline ExpertChoice Choice(int experts, int k) {
  ExpertChoice choice;
  choice.experts = experts;
  choice.k = k;
  return choice;
}

// What a block's beginning reads.
struct Inputs {
  Inputs(int rows, int d, const ExpertChoice& choice, bool bfloat16, bool gate, uint32_t seed)
      : rows(rows), d(d), choice(choice), bfloat16(bfloat16) {
    std::mt19937 random(seed);
    x = Normal(random, At(rows) * At(d), 3);
    norm = Normal(random, At(d));
    router = Normal(random, At(choice.experts) * At(d), 0.3f);
    if (gate) shared_gate = Normal(random, At(d), 0.3f);
    overrides.resize(At(rows));
    if (!bfloat16) return;
    for (float& w : router) w = FromBFloat16(ToNearestBFloat16(w));
    for (float& w : shared_gate) w = FromBFloat16(ToNearestBFloat16(w));
  }

  // Rows `chosen` of these.
  Inputs Rows(const std::vector<int>& chosen) const {
    Inputs part = *this;
    part.rows = static_cast<int>(chosen.size());
    part.x.clear();
    part.overrides.clear();
    for (const int r : chosen) {
      part.x.insert(part.x.end(), x.begin() + int64_t{r} * d, x.begin() + int64_t{r + 1} * d);
      part.overrides.push_back(overrides[At(r)]);
    }
    return part;
  }

  struct Override {
    std::vector<float> values;  // empty: none
    bool replaces = false;
  };

  int rows, d;
  ExpertChoice choice;
  bool bfloat16;
  std::vector<float> x, norm, router, shared_gate;
  std::vector<Override> overrides;
  std::vector<int32_t> counts;  // experts of each row; empty: choice.k
};

struct Routed {
  std::vector<uint16_t> normed;
  std::vector<float> logits, weights, probabilities, totals, shared_weights;
  std::vector<int32_t> selected;

  bool operator==(const Routed& other) const = default;
};

// Weights on the device, of their stored type.
class Weights {
 public:
  Weights(const std::vector<float>& values, bool bfloat16)
      : floats_(values), halves_(Rounded(values)), bfloat16_(bfloat16) {}
  const void* data() const {
    return bfloat16_ ? static_cast<const void*>(halves_.data()) : static_cast<const void*>(floats_.data());
  }

 private:
  static std::vector<uint16_t> Rounded(const std::vector<float>& values) {
    std::vector<uint16_t> halves;
    for (const float value : values) halves.push_back(ToNearestBFloat16(value));
    return halves;
  }

  host_cuda::DeviceArray<float> floats_;
  host_cuda::DeviceArray<uint16_t> halves_;
  bool bfloat16_;
};

class OverridesOnDevice {
 public:
  explicit OverridesOnDevice(const Inputs& in) {
    std::vector<RowOverride> rows;
    for (const Inputs::Override& given : in.overrides) {
      RowOverride row;
      if (!given.values.empty()) {
        values_.push_back(std::make_unique<host_cuda::DeviceArray<float>>(given.values));
        row.values = values_.back()->data();
        row.replaces = given.replaces ? 1 : 0;
      }
      rows.push_back(row);
    }
    rows_ = std::make_unique<host_cuda::DeviceArray<RowOverride>>(rows);
  }
  const RowOverride* data() const { return rows_->data(); }

 private:
  std::vector<std::unique_ptr<host_cuda::DeviceArray<float>>> values_;
  std::unique_ptr<host_cuda::DeviceArray<RowOverride>> rows_;
};

inline int Padded(int d) { return (d + 31) / 32 * 32; }

inline Routed Route(const Inputs& in, int planes, int blocks_per_row, int row_count = -1) {
  const int experts = in.choice.experts, k = in.choice.k;
  const host_cuda::DeviceArray<float> x(in.x), norm(in.norm);
  const Weights router(in.router, in.bfloat16), gate(in.shared_gate, in.bfloat16);
  const OverridesOnDevice overrides(in);
  const host_cuda::DeviceArray<uint16_t> normed(At(planes) * At(in.rows) * At(Padded(in.d)));
  const host_cuda::DeviceArray<float> logits(At(in.rows) * At(experts)), probabilities(logits.size());
  const host_cuda::DeviceArray<float> weights(At(in.rows) * At(k)), totals(At(in.rows)), shared(At(in.rows));
  const host_cuda::DeviceArray<int32_t> selected(weights.size()), arrived(std::vector<int32_t>(At(in.rows), 0));
  const host_cuda::DeviceArray<int32_t> count(std::vector<int32_t>{row_count});
  const host_cuda::DeviceArray<int32_t> counts(in.counts.empty() ? std::vector<int32_t>{0} : in.counts);
  RouterArgs args;
  args.counts = in.counts.empty() ? nullptr : counts.data();
  args.x = x.data();
  args.rows = in.rows;
  args.d = in.d;
  args.norm = norm.data();
  args.eps = kEps;
  args.normed = {normed.data(), int64_t{in.rows} * Padded(in.d), Padded(in.d)};
  args.planes = planes;
  args.router = experts > 0 ? router.data() : nullptr;
  args.shared_gate = in.shared_gate.empty() ? nullptr : gate.data();
  args.bfloat16_weights = in.bfloat16 ? 1 : 0;
  args.choice = in.choice;
  args.overrides = overrides.data();
  args.row_count = row_count >= 0 ? count.data() : nullptr;
  args.logits = logits.data();
  args.arrived = arrived.data();
  args.blocks_per_row = blocks_per_row;
  args.selected = selected.data();
  args.weights = weights.data();
  args.probabilities = probabilities.data();
  args.totals = totals.data();
  args.shared_weights = shared.data();
  EXPECT_EQ(LaunchRouter(args, nullptr), nullptr);
  EXPECT_EQ(arrived.Values(), std::vector<int32_t>(At(in.rows), 0));
  Routed out{normed.Values(),  logits.Values(), weights.Values(), probabilities.Values(), totals.Values(), {},
             selected.Values()};
  if (!in.shared_gate.empty()) out.shared_weights = shared.Values();
  return out;
}

inline std::vector<Inputs> Trials() {
  std::vector<Inputs> trials;
  trials.emplace_back(5, 72, Choice(16, 4), true, false, 1);
  ExpertChoice choice = Choice(64, 8);
  choice.normalizes = 1;
  trials.emplace_back(3, 256, choice, true, true, 2);
  choice = Choice(24, 5);
  choice.groups = 6;
  choice.groups_per_token = 2;
  choice.factor = 2.5f;
  trials.emplace_back(6, 50, choice, false, false, 3);
  trials.emplace_back(2, 40, Choice(8, 8), false, true, 4);  // all of them
  trials.emplace_back(2, 530, Choice(300, 6), true, false, 5);
  trials.emplace_back(2, 2312, Choice(9, 2), true, false, 6);  // more than a warp asks for at once
  for (Inputs& in : trials) {
    std::mt19937 random(9);
    in.overrides[0] = {Normal(random, At(in.choice.experts)), false};
    std::vector<float> weights(At(in.choice.experts));
    for (float& w : weights) w = std::abs(Normal(random, 1)[0]) / static_cast<float>(in.choice.experts);
    in.overrides[1] = {weights, true};
  }
  return trials;
}

}  // namespace c3po::cuda

#endif  // C3PO_TESTS_SERVER_COMPUTE_CUDA_ROUTER_TRIAL_H_
