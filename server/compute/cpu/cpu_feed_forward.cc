// The feed-forward blocks: router, experts and what runs in every row whatever the router says, a shared expert or a
// dense layer's network; of running sequences, of an objective's trees up and down, and at rows that do not change.

#include <algorithm>
#include <cmath>
#include <utility>

#include "server/compute/cpu/cpu_backend.h"
#include "server/compute/cpu/row_operations.h"

namespace c3po::cpu {
// What a run of the block has computed, for whoever goes back.
struct CpuBackend::FeedForwardRows {
  float* normed = nullptr;  // [R, d]
  MixingRows mixing;        // of an MoE layer
  ExpertRowsTape experts;   // likewise
  float* gate = nullptr;    // [R]: sigmoid of the shared expert's gate, where it has one
  ExpertRowsTape shared;
};

struct CpuBackend::FeedForwardTape final : public Tape {
  OwnedMatrix input;
  FeedForwardRows rows;
  KeptMemory memory;
};

// The shared expert's output, or a dense layer's.
void CpuBackend::RunShared(const LayerViews& views, const float* normed, int64_t rows, Memory& memory,
                           FeedForwardRows& result, float* out) {
  const int64_t d = config_.hidden_size;
  if (views.shared_gate.data != nullptr) {
    result.gate = memory.Floats(rows);
    Project({normed, d, rows, nullptr}, views.shared_gate, nullptr, result.gate);
    for (int64_t r = 0; r < rows; ++r) result.gate[r] = 1 / (1 + std::exp(-result.gate[r]));
  }
  result.shared = RunExperts(views.shared, {nullptr, 0, result.gate}, normed, rows, memory, arena_, out);
}

CpuBackend::FeedForwardRows CpuBackend::RunFeedForward(const LayerViews& views, absl::Span<const RoutingRows> routing,
                                                       const float* x, int64_t rows, Memory& memory, float* out,
                                                       absl::Span<const CountedRows> counts) {
  const int64_t d = config_.hidden_size;
  FeedForwardRows result;
  result.normed = memory.Floats(rows * d);
  Norm(x, views.feed_forward_norm, rows, result.normed);
  float* const block = arena_.Floats(rows * d);
  if (views.moe()) {
    float* const logits = memory.Floats(rows * config_.experts);
    Project({result.normed, d, rows, nullptr}, views.router, nullptr, logits);
    result.mixing = SelectExperts(config_, routing, rows, logits, memory, counts);
    const Selection selection{result.mixing.selected, result.mixing.k, result.mixing.weights};
    result.experts = RunExperts(views.experts, selection, result.normed, rows, memory, arena_, block);
    if (views.shared.exists()) {
      float* const shared = arena_.Floats(rows * d);
      RunShared(views, result.normed, rows, memory, result, shared);
      AddScaledRows(block, shared, 1, rows * d, block);
    }
  } else {
    RunShared(views, result.normed, rows, memory, result, block);
  }
  AddScaledRows(x, block, static_cast<float>(config_.residual_multiplier), rows * d, out);
  return result;
}

void CpuBackend::FeedForward(int l, Matrix hidden, Matrix probabilities) {
  RoutingOfLayer(step_.overrides, l, overrides_);
  routing_.clear();
  for (const PlacedRoutingRows& placed : overrides_) {
    const absl::Span<const float> values(FloatsOf(placed.values), static_cast<size_t>(placed.values.columns));
    routing_.push_back({placed.begin, placed.end, placed.kind, values, -1});
  }
  const Arena::Scope scope(arena_);
  const FeedForwardRows result =
      RunFeedForward(step_layer(l), routing_, FloatsOf(hidden), hidden.rows, arena_, FloatsOf(hidden), step_.counts);
  if (probabilities.empty()) return;
  const int64_t experts = config_.experts;
  for (int64_t r = 0; r < hidden.rows; ++r) {
    std::copy_n(result.mixing.probabilities + r * experts, experts, FloatsOf(probabilities) + r * probabilities.stride);
  }
}

void CpuBackend::PreparationFeedForward(int l, Matrix hidden) {
  const Arena::Scope scope(arena_);
  RunFeedForward(layer(l), {}, FloatsOf(hidden), hidden.rows, arena_, FloatsOf(hidden));
}

OwnedMatrix CpuBackend::FeedForward(int l, absl::Span<const RoutingRows> routing, const OwnedMatrix& hidden,
                                    std::unique_ptr<Tape>* tape_out) {
  auto tape = tape_out ? std::make_unique<FeedForwardTape>() : nullptr;
  const Arena::Scope scope(arena_);
  Memory& memory = tape ? static_cast<Memory&>(tape->memory) : arena_;
  OwnedMatrix out = AllocateHidden(hidden.rows());
  FeedForwardRows rows =
      RunFeedForward(layer(l), routing, FloatsOf(hidden.view()), hidden.rows(), memory, FloatsOf(out.view()));
  if (tape) {
    tape->input = hidden;
    tape->rows = rows;
    *tape_out = std::move(tape);
  }
  return out;
}

void CpuBackend::SharedBackward(const LayerViews& views, const FeedForwardRows& forward, const float* dout,
                                int64_t rows, float* dnormed) {
  const int64_t d = config_.hidden_size;
  float* const dgate = arena_.Floats(rows * views.shared.count);
  RunExpertsBackward(views.shared, forward.shared, dout, rows, arena_, dgate, dnormed);
  if (forward.gate == nullptr) return;
  for (int64_t r = 0; r < rows; ++r) dgate[r] *= forward.gate[r] * (1 - forward.gate[r]);
  float* const through_gate = arena_.Floats(rows * d);
  ProjectBackward({dgate, 1, rows, nullptr}, views.shared_gate, arena_, through_gate);
  AddScaledRows(dnormed, through_gate, 1, rows * d, dnormed);
}

OwnedMatrix CpuBackend::FeedForwardBackward(int l, absl::Span<const RoutingRows> routing, const Tape& taped,
                                            const OwnedMatrix& dout, Matrix sums) {
  const auto& tape = static_cast<const FeedForwardTape&>(taped);
  const FeedForwardRows& forward = tape.rows;
  const LayerViews& views = layer(l);
  const int64_t rows = dout.rows(), d = config_.hidden_size, experts = config_.experts;
  const Arena::Scope scope(arena_);
  const float* const dblock = Scaled(FloatsOf(dout.view()), rows * d);
  float* const dnormed = arena_.Floats(rows * d);
  if (views.moe()) {
    float* const part = arena_.Floats(rows * d);
    float* const dweights = arena_.Floats(rows * experts);
    float* const dlogits = arena_.Floats(rows * experts);
    RunExpertsBackward(views.experts, forward.experts, dblock, rows, arena_, dweights, dnormed);
    if (views.shared.exists()) {
      SharedBackward(views, forward, dblock, rows, part);
      AddScaledRows(dnormed, part, 1, rows * d, dnormed);
    }
    SelectExpertsBackward(config_, forward.mixing, dweights, dlogits);
    SumOverRouting(routing, experts, dweights, dlogits, sums);
    // Weights that an override replaced do not look at the router.
    for (int64_t r = 0; forward.mixing.replaced != nullptr && r < rows; ++r) {
      if (forward.mixing.replaced[r]) std::fill_n(dlogits + r * experts, experts, 0.0f);
    }
    ProjectBackward({dlogits, experts, rows, nullptr}, views.router, arena_, part);
    AddScaledRows(dnormed, part, 1, rows * d, dnormed);
  } else {
    SharedBackward(views, forward, dblock, rows, dnormed);
  }
  OwnedMatrix dx = AllocateHidden(rows);
  RmsNormBackwardRows(dnormed, FloatsOf(tape.input.view()), d, views.feed_forward_norm, FloatsOf(dout.view()),
                      config_.rms_norm_eps, rows, d, FloatsOf(dx.view()));
  return dx;
}

struct CpuBackend::Remembered final : public RememberedExperts {
  int layer = 0;
  OwnedMatrix input;
  KeptMemory memory;
  float* normed = nullptr;  // [R, d]
  float* shared = nullptr;  // [R, d]: the shared expert's output; null without
  std::shared_ptr<void>
      outputs;              // [R, E, d]: Expert_e(h), filled when an expert is first selected; null where too large
  std::vector<bool> known;  // experts whose outputs are there

  int64_t rows() const { return input.rows(); }
};

struct CpuBackend::RememberedTape final : public Tape {
  MixingRows mixing;
  ExpertRowsTape experts;  // where outputs are not kept
  KeptMemory memory;
};

std::unique_ptr<RememberedExperts> CpuBackend::Remember(int l, const OwnedMatrix& hidden, int64_t bytes_max) {
  const LayerViews& views = layer(l);
  const int64_t rows = hidden.rows(), d = config_.hidden_size;
  auto result = std::make_unique<Remembered>();
  result->layer = l;
  result->input = hidden;
  result->normed = result->memory.Floats(rows * d);
  Norm(FloatsOf(hidden.view()), views.feed_forward_norm, rows, result->normed);
  if (views.shared.exists()) {
    const Arena::Scope scope(arena_);
    FeedForwardRows unread;
    result->shared = result->memory.Floats(rows * d);
    RunShared(views, result->normed, rows, arena_, unread, result->shared);
  }
  const int64_t bytes = rows * config_.experts * d * static_cast<int64_t>(sizeof(float));
  if (bytes > bytes_max) return result;
  result->outputs = AllocateBytes(bytes);
  std::fill_n(static_cast<float*>(result->outputs.get()), rows * config_.experts * d, 0.0f);
  result->known.resize(static_cast<size_t>(config_.experts));
  return result;
}

// sum_e w_e Expert_e(h), on top of what `out` holds. An expert that was not selected before is run now, at all rows.
void CpuBackend::MixRemembered(Remembered& experts, const MixingRows& mixing, float* out) {
  const int64_t rows = experts.rows(), d = config_.hidden_size, n = config_.experts;
  float* const outputs = static_cast<float*>(experts.outputs.get());
  std::vector<int64_t> missing;
  if (mixing.selected == nullptr) {
    for (int64_t e = 0; e < n; ++e) {
      if (!experts.known[e]) missing.push_back(e);
    }
  } else {
    for (int64_t i = 0; i < rows * config_.experts_per_token; ++i) {
      if (!experts.known[mixing.selected[i]]) missing.push_back(mixing.selected[i]);
    }
    std::sort(missing.begin(), missing.end());
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
  }
  if (!missing.empty()) {
    RunExpertsApart(layer(experts.layer).experts, missing, experts.normed, rows, arena_, outputs);
    for (const int64_t e : missing) experts.known[e] = true;
  }
  std::vector<OuterProduct> products;
  for (int64_t r = 0; r < rows; ++r) {
    products.push_back(
        {{mixing.weights + r * n, n, 1, nullptr}, {outputs + r * n * d, false, n, d}, {out + r * d, d, nullptr}});
  }
  MultiplyAdd(products);
}

OwnedMatrix CpuBackend::RunRemembered(RememberedExperts& remembered, absl::Span<const RoutingRows> routing,
                                      std::unique_ptr<Tape>* tape_out) {
  auto& experts = static_cast<Remembered&>(remembered);
  const LayerViews& views = layer(experts.layer);
  const int64_t rows = experts.rows(), d = config_.hidden_size;
  auto tape = std::make_unique<RememberedTape>();
  const Arena::Scope scope(arena_);
  Memory& memory = tape_out ? static_cast<Memory&>(tape->memory) : arena_;
  float* const logits = memory.Floats(rows * config_.experts);
  Project({experts.normed, d, rows, nullptr}, views.router, nullptr, logits);
  tape->mixing = SelectExperts(config_, routing, rows, logits, memory);
  float* const block = arena_.Floats(rows * d);
  if (experts.outputs != nullptr) {
    if (experts.shared != nullptr) {
      std::copy_n(experts.shared, rows * d, block);
    } else {
      std::fill_n(block, rows * d, 0.0f);
    }
    MixRemembered(experts, tape->mixing, block);
  } else {
    const Selection selection{tape->mixing.selected, config_.experts_per_token, tape->mixing.weights};
    tape->experts = RunExperts(views.experts, selection, experts.normed, rows, memory, arena_, block);
    if (experts.shared != nullptr) AddScaledRows(experts.shared, block, 1, rows * d, block);
  }
  OwnedMatrix out = AllocateHidden(rows);
  AddScaledRows(FloatsOf(experts.input.view()), block, static_cast<float>(config_.residual_multiplier), rows * d,
                FloatsOf(out.view()));
  if (tape_out) *tape_out = std::move(tape);
  return out;
}

void CpuBackend::RememberedBackward(const RememberedExperts& remembered, absl::Span<const RoutingRows> routing,
                                    const Tape& taped, const OwnedMatrix& dout, Matrix sums) {
  const auto& experts = static_cast<const Remembered&>(remembered);
  const auto& tape = static_cast<const RememberedTape&>(taped);
  const int64_t rows = experts.rows(), d = config_.hidden_size, n = config_.experts;
  const Arena::Scope scope(arena_);
  const float* const dblock = Scaled(FloatsOf(dout.view()), rows * d);
  float* const dweights = arena_.Floats(rows * n);
  float* const dlogits = arena_.Floats(rows * n);
  if (experts.outputs != nullptr) {
    const float* const outputs = static_cast<const float*>(experts.outputs.get());
    std::vector<DotProduct> products;
    for (int64_t r = 0; r < rows; ++r) {
      products.push_back(
          {{dblock + r * d, d, 1, nullptr}, {outputs + r * n * d, false, n, d}, {dweights + r * n, n, nullptr}});
    }
    MultiplyTransposed(products);
  } else {
    RunExpertsBackward(layer(experts.layer).experts, tape.experts, dblock, rows, arena_, dweights, nullptr);
  }
  SelectExpertsBackward(config_, tape.mixing, dweights, dlogits);
  SumOverRouting(routing, n, dweights, dlogits, sums);
}

}  // namespace c3po::cpu
