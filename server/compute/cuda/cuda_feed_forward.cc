// The feed-forward blocks: of running sequences, and of an objective's trees up and down.

#include <algorithm>
#include <utility>

#include "server/compute/cuda/cuda_backend.h"
#include "server/compute/cuda/feed_forward_rows.h"
#include "server/compute/cuda/tree_plan.h"

namespace c3po::cuda {
namespace {

constexpr int64_t kRouterBlocksMax = 16;  // of a row
constexpr int kListedRowsMax = 64;        // More rows are listed by expert once, not by each block for itself.

}  // namespace

struct CudaBackend::FeedForwardTape final : public Tape {
  explicit FeedForwardTape(TapeMemory of) : memory(std::move(of)) {}
  OwnedMatrix input;
  ObjectiveRouting routing;
  FeedForwardRows rows;
  TapeMemory memory;
};

ExpertChoice CudaBackend::Choice() const {
  ExpertChoice choice;
  choice.experts = config_.experts;
  choice.k = config_.experts_per_token;
  choice.groups = config_.expert_groups;
  choice.groups_per_token = config_.groups_per_token;
  choice.normalizes = config_.norm_topk_prob ? 1 : 0;
  choice.factor = static_cast<float>(config_.routed_scaling_factor);
  return choice;
}

// The norm, and where there are experts, which of them the rows take. For the way back what it reads lies in `memory`.
CudaBackend::FeedForwardRows CudaBackend::Route(const CudaLayer& weights, const RowOverride* overrides,
                                                const int* row_count, int64_t rows, const float* x,
                                                float* probabilities, RowMemory& memory, const int* counts) {
  const int64_t k = config_.experts_per_token;
  FeedForwardRows result;
  result.normed = NewPlanes(rows, config_.hidden_size);
  RouterArgs router;
  router.x = x;
  router.rows = static_cast<int32_t>(rows);
  router.d = config_.hidden_size;
  router.norm = weights.feed_forward_norm;
  router.eps = static_cast<float>(config_.rms_norm_eps);
  router.normed = result.normed;
  router.planes = planes();
  if (weights.moe()) {
    router.router = weights.router;
    router.choice = Choice();
    router.overrides = overrides;
    router.counts = counts;
    router.row_count = row_count;
    router.blocks_per_row = static_cast<int32_t>(std::clamp<int64_t>(multiprocessors_ / rows, 1, kRouterBlocksMax));
    if (router.blocks_per_row > 1) router.arrived = Arrived(rows);
    router.logits = arena_.Floats(rows * config_.experts);
    router.selected = result.selected = memory.Integers(rows * k);
    router.weights = result.weights = memory.Floats(rows * k);
    router.probabilities = result.probabilities = probabilities;
    if (config_.norm_topk_prob) router.totals = result.totals = memory.Floats(rows);
  }
  if (weights.shared_gate != nullptr) {
    router.shared_gate = weights.shared_gate;
    router.shared_weights = result.shared_weights = memory.Floats(rows);
  }
  Check(kernels_.router(router, stream()), "routing");
  return result;
}

// silu(W_gate h) W_up h of the pairs and, where something runs in every row, of that. `scale` of each is its own.
ExpertProductArgs CudaBackend::RunGateUp(const CudaLayer& weights, const ExpertSelection& selection,
                                         const FeedForwardRows& rows) {
  ExpertProductArgs up;
  up.selection = selection;
  up.multiprocessors = multiprocessors_;
  if (selection.k > 0) {
    up.routed.weights = weights.gate_up;
    up.routed.scale = rows.weights;
    up.routed.in = rows.normed;
    up.routed.planes_out = NewPlanes(int64_t{selection.rows} * selection.k, config_.intermediate_size);
    up.routed.gate_up = rows.gate_up;
    if (selection.rows > kListedRowsMax) {
      const ExpertListArgs lists{selection, arena_.Integers(selection.experts),
                                 arena_.Integers(int64_t{selection.experts} * selection.rows)};
      Check(kernels_.expert_lists(lists, stream()), "listing experts' rows");
      up.list_counts = lists.counts;
      up.list_pairs = lists.pairs;
    }
  }
  if (weights.shared_down.data != nullptr) {
    up.shared.weights = weights.shared_gate_up;
    up.shared.scale = rows.shared_weights;
    up.shared.in = rows.normed;
    up.shared.planes_out = NewPlanes(selection.rows, weights.shared_down.columns);
    up.shared.gate_up = rows.shared_gate_up;
  }
  Check(kernels_.gate_up(up, stream()), "running experts");
  return up;
}

// x + m Block(h), from the neurons that RunGateUp left. Of many rows each expert's weights are read once for all of
// them, and its outputs are added up afterwards.
void CudaBackend::MixDown(const CudaLayer& weights, const ExpertProductArgs& up, const float* x, float* out) {
  const int64_t d = config_.hidden_size;
  const auto factor = static_cast<float>(config_.residual_multiplier);
  if (up.selection.rows > kListedRowsMax) {
    const ExpertProductArgs down = RunDownApart(weights, up);
    ExpertSumArgs sum;
    sum.selection = up.selection;
    sum.columns = static_cast<int>(d);
    sum.routed = down.routed.floats_out;
    sum.shared = down.shared.floats_out;
    sum.stride = d;
    sum.residual = x;
    sum.residual_stride = d;
    sum.factor = factor;
    sum.out = out;
    sum.out_stride = d;
    return Check(kernels_.expert_sum(sum, stream()), "mixing experts");
  }
  ExpertMixArgs mix;
  mix.selection = up.selection;
  if (up.selection.k > 0) mix.routed = weights.down;
  mix.shared = weights.shared_down;
  mix.routed_in = up.routed.planes_out;
  mix.shared_in = up.shared.planes_out;
  mix.residual = x;
  mix.residual_stride = d;
  mix.factor = factor;
  mix.out = out;
  mix.out_stride = d;
  Check(kernels_.expert_mix(mix, stream()), "mixing experts");
}

// W_down of each pair's neurons, and of each row's: float32 [pairs, d] and [R, d], in the arena unless `up` names
// where.
ExpertProductArgs CudaBackend::RunDownApart(const CudaLayer& weights, const ExpertProductArgs& up) {
  const int64_t d = config_.hidden_size, rows = up.selection.rows;
  ExpertProductArgs down = up;
  down.floats_stride = d;
  const auto turn = [&](const PackedWeights& of, int64_t count, ExpertNetworks& networks) {
    networks.in = networks.planes_out;
    networks.planes_out = {};
    networks.weights = of;
    networks.scale = nullptr;
    networks.gate_up = nullptr;
    if (networks.floats_out == nullptr) networks.floats_out = arena_.Floats(count * d);
  };
  if (up.selection.k > 0) turn(weights.down, rows * up.selection.k, down.routed);
  if (weights.shared_down.data != nullptr) turn(weights.shared_down, rows, down.shared);
  Check(kernels_.down_apart(down, stream()), "running experts apart");
  return down;
}

ExpertSelection CudaBackend::SelectionOf(const CudaLayer& weights, int64_t rows, const int* selected) const {
  return {static_cast<int>(rows), weights.moe() ? config_.experts_per_token : 0, config_.experts, selected};
}

void CudaBackend::FeedForward(int l, Matrix hidden, Matrix probabilities) {
  const StepForm& form = plan_.form();
  const StepPlaces& places = plan_.places();
  const CudaLayer& weights = layer(l);
  if (form.rows == 0) return;
  const RowOverride* overrides = nullptr;
  if (places.overrides != nullptr && weights.moe()) {
    const auto found = std::lower_bound(config_.moe_layers.begin(), config_.moe_layers.end(), l);
    overrides = places.overrides + (found - config_.moe_layers.begin()) * form.rows;
  }
  const StepArena::Scope scope(arena_);
  const FeedForwardRows rows = Route(weights, overrides, places.row_count, form.rows, FloatsOf(hidden),
                                     probabilities.empty() ? nullptr : FloatsOf(probabilities), arena_, places.counts);
  MixDown(weights, RunGateUp(weights, SelectionOf(weights, form.rows, rows.selected), rows), FloatsOf(hidden),
          FloatsOf(hidden));
}

void CudaBackend::PreparationFeedForward(int l, Matrix hidden) {
  if (hidden.rows == 0) return;
  const CudaLayer& weights = layer(l);
  const StepArena::Scope scope(arena_);
  const FeedForwardRows rows = Route(weights, nullptr, nullptr, hidden.rows, FloatsOf(hidden), nullptr, arena_);
  MixDown(weights, RunGateUp(weights, SelectionOf(weights, hidden.rows, rows.selected), rows), FloatsOf(hidden),
          FloatsOf(hidden));
}

// One copy: the values, what each row is told, and where its gradient goes. The values of a pass that runs as a whole
// are there already.
CudaBackend::ObjectiveRouting CudaBackend::PlaceRouting(absl::Span<const RoutingRows> routing, int64_t rows) {
  ObjectiveRouting placed;
  if (routing.empty()) return placed;
  DeviceArrays arrays;
  std::vector<const float*> values;  // where they lie
  if (pass_run_ != nullptr) {
    for (const RoutingRows& one : routing) values.push_back(PlacedValues(one.values));
  } else {
    std::vector<float> all;
    for (const RoutingRows& one : routing) all.insert(all.end(), one.values.begin(), one.values.end());
    const int64_t at = arrays.Add(all);
    const auto count = static_cast<int64_t>(routing.size());
    placed.memory = memory_->Take(static_cast<int64_t>(arrays.bytes().size()) + rows * int64_t{sizeof(RowOverride)} +
                                  count * int64_t{sizeof(RoutingSum)} + 32);  // Both are padded.
    for (int64_t i = 0; i < count; ++i) values.push_back(At<float>(placed.memory, at) + i * config_.experts);
  }
  std::vector<RowOverride> overrides(static_cast<size_t>(rows));
  std::vector<RoutingSum> sums;
  for (size_t i = 0; i < routing.size(); ++i) {
    const RoutingRows& one = routing[i];
    const int replaces = one.kind == RoutingOverride::Kind::kWeights ? 1 : 0;
    std::fill(overrides.begin() + one.begin, overrides.begin() + one.end, RowOverride{values[i], replaces});
    sums.push_back(
        {static_cast<int32_t>(one.begin), static_cast<int32_t>(one.end), replaces, static_cast<int32_t>(one.sum)});
  }
  const int64_t overrides_at = arrays.Add(overrides), sums_at = arrays.Add(sums);
  if (pass_run_ != nullptr) {
    placed.memory = Place(arrays);
  } else {
    copies_.Upload(arrays.bytes().data(), static_cast<int64_t>(arrays.bytes().size()), placed.memory.get());
  }
  placed.overrides = At<RowOverride>(placed.memory, overrides_at);
  placed.sums = At<RoutingSum>(placed.memory, sums_at);
  placed.sum_count = static_cast<int>(sums.size());
  return placed;
}

OwnedMatrix CudaBackend::FeedForward(int l, absl::Span<const RoutingRows> routing, const OwnedMatrix& hidden,
                                     std::unique_ptr<Tape>* tape_out) {
  const CudaLayer& weights = layer(l);
  const int64_t rows = hidden.rows();
  if (rows == 0) {
    if (tape_out) *tape_out = std::make_unique<FeedForwardTape>(NewTapeMemory());
    return AllocateHidden(0);
  }
  const StepArena::Scope scope(arena_);
  auto tape = std::make_unique<FeedForwardTape>(NewTapeMemory());
  RowMemory& memory = tape_out ? static_cast<RowMemory&>(tape->memory) : arena_;
  tape->routing = PlaceRouting(routing, rows);
  float* const probabilities = tape_out && weights.moe() ? memory.Floats(rows * config_.experts) : nullptr;
  FeedForwardRows kept =
      Route(weights, tape->routing.overrides, nullptr, rows, FloatsOf(hidden.view()), probabilities, memory);
  const ExpertSelection selection = SelectionOf(weights, rows, kept.selected);
  if (tape_out) {
    if (weights.moe()) kept.gate_up = memory.Floats(rows * selection.k * weights.gate_up.rows);
    if (weights.shared_down.data != nullptr) kept.shared_gate_up = memory.Floats(rows * weights.shared_gate_up.rows);
  }
  OwnedMatrix out = AllocateHidden(rows);
  MixDown(weights, RunGateUp(weights, selection, kept), FloatsOf(hidden.view()), FloatsOf(out.view()));
  if (tape_out) {
    tape->input = hidden;
    tape->rows = kept;
    *tape_out = std::move(tape);
  }
  return out;
}

// From dJ/dy to dJ/d(gate, up) of every pair and row, and to what the mixing weights and the shared expert's gate are
// told.
ExpertProductArgs CudaBackend::RunDownBackward(const CudaLayer& weights, const FeedForwardRows& forward,
                                               const float* dout, int64_t rows, float* dweights, float* dshared) {
  const int64_t d = config_.hidden_size;
  RowPlanesArgs entering;
  entering.source.kind = RowSource::kFloats;
  entering.source.x = dout;
  entering.source.stride = d;
  entering.source.scale = static_cast<float>(config_.residual_multiplier);
  entering.rows = static_cast<int>(rows);
  entering.columns = static_cast<int>(d);
  entering.planes = planes();
  entering.for_transposed = true;
  entering.out = NewPlanes(rows, d);
  Check(kernels_.row_planes(entering, stream()), "rounding rows");

  ExpertProductArgs down;
  down.selection = SelectionOf(weights, rows, forward.selected);
  down.multiprocessors = multiprocessors_;
  const auto place = [&](const PackedWeights& of, const float* scale, float* gate_up, int64_t gate_up_rows,
                         int64_t pairs, ExpertNetworks& networks) {
    networks.weights = of;
    networks.scale = scale;
    networks.in = entering.out;
    networks.gate_up = gate_up;
    networks.planes_out = NewPlanes(pairs, gate_up_rows);
    networks.dots = arena_.Floats(pairs * UnitsOfDots(of.columns));
  };
  const int64_t pairs = rows * down.selection.k;
  if (pairs > 0) {
    place(weights.down, forward.weights, forward.gate_up, weights.gate_up.rows, pairs, down.routed);
  }
  if (weights.shared_down.data != nullptr) {
    place(weights.shared_down, forward.shared_weights, forward.shared_gate_up, weights.shared_gate_up.rows, rows,
          down.shared);
  }
  Check(kernels_.down_backward(down, stream()), "going back through experts");
  const auto sum = [&](const ExpertNetworks& networks, int64_t count, float* sums) {
    if (networks.dots == nullptr || sums == nullptr) return;
    const DotSumsArgs args{networks.dots, static_cast<int>(count), UnitsOfDots(networks.weights.columns), sums};
    Check(kernels_.dot_sums(args, stream()), "adding up");
  };
  sum(down.routed, pairs, dweights);
  sum(down.shared, rows, dshared);
  return down;
}

RouterBackwardArgs CudaBackend::RouterBackwardOf(const CudaLayer& weights, const FeedForwardRows& forward,
                                                 const ObjectiveRouting& routing, int64_t rows, const float* dweights) {
  RouterBackwardArgs back;
  back.rows = static_cast<int32_t>(rows);
  back.d = config_.hidden_size;
  back.choice = Choice();
  back.router = weights.router;
  back.overrides = routing.overrides;
  back.selected = forward.selected;
  back.weights = forward.weights;
  back.probabilities = forward.probabilities;
  back.totals = forward.totals;
  back.dweights = dweights;
  back.dprobabilities = arena_.Floats(rows * config_.experts);
  back.dlogits = arena_.Floats(rows * config_.experts);
  return back;
}

void CudaBackend::SumRouting(const ObjectiveRouting& routing, const RouterBackwardArgs& back, Matrix sums) {
  if (routing.sum_count == 0 || sums.rows == 0) return;
  RoutingSumsArgs args;
  args.entries = routing.sums;
  args.count = routing.sum_count;
  args.sum_rows = static_cast<int32_t>(sums.rows);
  args.experts = config_.experts;
  args.dprobabilities = back.dprobabilities;
  args.dlogits = back.dlogits;
  args.sums = FloatsOf(sums);
  args.stride = sums.stride;
  Check(kernels_.routing_sums(args, stream()), "adding up gradients");
}

OwnedMatrix CudaBackend::FeedForwardBackward(int l, absl::Span<const RoutingRows> /*routing*/, const Tape& taped,
                                             const OwnedMatrix& dout, Matrix sums) {
  const auto& tape = static_cast<const FeedForwardTape&>(taped);
  const FeedForwardRows& forward = tape.rows;
  const CudaLayer& weights = layer(l);
  const int64_t rows = dout.rows(), d = config_.hidden_size;
  if (rows == 0) return AllocateHidden(0);
  const StepArena::Scope scope(arena_);
  float* const dweights = weights.moe() ? arena_.Floats(rows * config_.experts_per_token) : nullptr;
  float* const dshared = weights.shared_gate != nullptr ? arena_.Floats(rows) : nullptr;
  const ExpertProductArgs down = RunDownBackward(weights, forward, FloatsOf(dout.view()), rows, dweights, dshared);

  float* const dnormed = arena_.Floats(rows * d);
  ExpertMixArgs mix;
  mix.selection = down.selection;
  mix.transposed = true;
  if (down.selection.k > 0) mix.routed = weights.gate_up;
  mix.shared = weights.shared_gate_up;
  mix.routed_in = down.routed.planes_out;
  mix.shared_in = down.shared.planes_out;
  mix.out = dnormed;
  mix.out_stride = d;
  Check(kernels_.expert_mix(mix, stream()), "going back through experts");

  if (weights.moe()) {
    RouterBackwardArgs back = RouterBackwardOf(weights, forward, tape.routing, rows, dweights);
    back.shared_gate = weights.shared_gate;
    back.shared_weights = forward.shared_weights;
    back.dshared_weights = dshared;
    back.dnormed = dnormed;
    Check(kernels_.router_backward(back, stream()), "going back through the router");
    SumRouting(tape.routing, back, sums);
  }
  OwnedMatrix dx = AllocateHidden(rows);
  NormBackward(dnormed, tape.input.view(), weights.feed_forward_norm, FloatsOf(dout.view()), FloatsOf(dx.view()));
  return dx;
}

// dx = add + dJ/dx from dJ/dy, y = RmsNorm(x), of packed rows of the residual stream.
void CudaBackend::NormBackward(const float* dy, const Matrix& x, const float* weight, const float* add, float* dx) {
  NormBackwardArgs args;
  args.rows = static_cast<int32_t>(x.rows);
  args.size = config_.hidden_size;
  args.dy = dy;
  args.x = FloatsOf(x);
  args.weight = weight;
  args.add = add;
  args.eps = static_cast<float>(config_.rms_norm_eps);
  args.dx = dx;
  args.dy_stride = args.x_stride = args.add_stride = args.dx_stride = config_.hidden_size;
  Check(kernels_.norm_backward(args, stream()), "going back through a norm");
}

}  // namespace c3po::cuda
