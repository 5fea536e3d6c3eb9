// The feed-forward block at rows that do not change, of which an objective moves only the mixing weights.

#include <utility>

#include "server/compute/cuda/cuda_backend.h"
#include "server/compute/cuda/feed_forward_rows.h"

namespace c3po::cuda {

struct CudaBackend::Remembered final : public RememberedExperts {
  explicit Remembered(TapeMemory of) : memory(std::move(of)) {}
  int layer = 0;
  OwnedMatrix input;
  TapeMemory memory;
  float* outputs = nullptr;  // [R, E, d]; null where they would be too large
  float* shared = nullptr;   // [R, d]: the shared expert's output; null without
};

std::unique_ptr<RememberedExperts> CudaBackend::Remember(int l, const OwnedMatrix& hidden, int64_t bytes_max) {
  const CudaLayer& weights = layer(l);
  const int64_t rows = hidden.rows(), d = config_.hidden_size, experts = config_.experts;
  auto result = std::make_unique<Remembered>(NewTapeMemory());
  result->layer = l;
  result->input = hidden;
  if (rows * experts * d * 4 > bytes_max) return result;
  const StepArena::Scope scope(arena_);
  FeedForwardRows kept = Route(weights, nullptr, nullptr, rows, FloatsOf(hidden.view()), nullptr, arena_);
  kept.weights = nullptr;  // Each expert's output as it is.
  int* const all = arena_.Integers(rows * experts);
  Check(kernels_.select_all({static_cast<int32_t>(rows), config_.experts, all}, stream()), "selecting all experts");
  ExpertProductArgs up = RunGateUp(weights, {static_cast<int>(rows), config_.experts, config_.experts, all}, kept);
  up.routed.floats_out = result->outputs = result->memory.Floats(rows * experts * d);
  if (weights.shared_down.data != nullptr) {
    up.shared.floats_out = result->shared = result->memory.Floats(rows * d);
  }
  RunDownApart(weights, up);
  return result;
}

struct CudaBackend::RememberedTape final : public Tape {
  explicit RememberedTape(TapeMemory of) : memory(std::move(of)) {}
  ObjectiveRouting routing;
  FeedForwardRows rows;
  TapeMemory memory;
};

OwnedMatrix CudaBackend::RunRemembered(RememberedExperts& remembered, absl::Span<const RoutingRows> routing,
                                       std::unique_ptr<Tape>* tape_out) {
  auto& experts = static_cast<Remembered&>(remembered);
  const CudaLayer& weights = layer(experts.layer);
  const int64_t rows = experts.input.rows(), d = config_.hidden_size;
  const float* const x = FloatsOf(experts.input.view());
  auto tape = std::make_unique<RememberedTape>(NewTapeMemory());
  const StepArena::Scope scope(arena_);
  RowMemory& memory = tape_out ? static_cast<RowMemory&>(tape->memory) : arena_;
  tape->routing = PlaceRouting(routing, rows);
  float* const probabilities = tape_out ? memory.Floats(rows * config_.experts) : nullptr;
  FeedForwardRows kept = Route(weights, tape->routing.overrides, nullptr, rows, x, probabilities, memory);
  OwnedMatrix out = AllocateHidden(rows);
  if (experts.outputs != nullptr) {
    MixRememberedArgs mix;
    mix.rows = static_cast<int32_t>(rows);
    mix.d = static_cast<int32_t>(d);
    mix.experts = config_.experts;
    mix.k = config_.experts_per_token;
    mix.outputs = experts.outputs;
    mix.selected = kept.selected;
    mix.weights = kept.weights;
    mix.shared = experts.shared;
    mix.x = x;
    mix.factor = static_cast<float>(config_.residual_multiplier);
    mix.out = FloatsOf(out.view());
    Check(kernels_.mix_remembered(mix, stream()), "mixing remembered experts");
  } else {
    const ExpertSelection selection = SelectionOf(weights, rows, kept.selected);
    if (tape_out) {
      kept.gate_up = memory.Floats(rows * selection.k * weights.gate_up.rows);
      if (weights.shared_down.data != nullptr) kept.shared_gate_up = memory.Floats(rows * weights.shared_gate_up.rows);
    }
    MixDown(weights, RunGateUp(weights, selection, kept), x, FloatsOf(out.view()));
  }
  tape->rows = kept;
  if (tape_out) *tape_out = std::move(tape);
  return out;
}

void CudaBackend::RememberedBackward(const RememberedExperts& remembered, absl::Span<const RoutingRows> /*routing*/,
                                     const Tape& taped, const OwnedMatrix& dout, Matrix sums) {
  const auto& experts = static_cast<const Remembered&>(remembered);
  const auto& tape = static_cast<const RememberedTape&>(taped);
  const CudaLayer& weights = layer(experts.layer);
  const int64_t rows = experts.input.rows();
  const StepArena::Scope scope(arena_);
  float* const dweights = arena_.Floats(rows * config_.experts_per_token);
  if (experts.outputs != nullptr) {
    MixRememberedBackwardArgs args;
    args.rows = static_cast<int32_t>(rows);
    args.d = config_.hidden_size;
    args.experts = config_.experts;
    args.k = config_.experts_per_token;
    args.outputs = experts.outputs;
    args.selected = tape.rows.selected;
    args.dout = FloatsOf(dout.view());
    args.factor = static_cast<float>(config_.residual_multiplier);
    args.dweights = dweights;
    Check(kernels_.mix_remembered_backward(args, stream()), "going back through remembered experts");
  } else {
    RunDownBackward(weights, tape.rows, FloatsOf(dout.view()), rows, dweights, nullptr);
  }
  const RouterBackwardArgs back = RouterBackwardOf(weights, tape.rows, tape.routing, rows, dweights);
  Check(kernels_.router_backward(back, stream()), "going back through the router");
  SumRouting(tape.routing, back, sums);
}

}  // namespace c3po::cuda
