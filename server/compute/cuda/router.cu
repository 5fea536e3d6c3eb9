// One block a row, or several that share its logits. A warp has eight 16-byte loads of the router under way, of up to
// four experts at a time, which share the normed entries it reads. An expert's logit is summed by one warp in an order
// that depends on d alone. With one row and 64 experts, 8 blocks give each warp one expert.
//
// The top k are found without an order: expert e's place is the number of experts that come before it, which E threads
// count side by side, some 64 reads of shared memory each, where k rounds of a maximum over the block would wait k
// times.
#include <cmath>

#include "index/base/cuda/device.h"
#include "server/compute/cuda/bfloat16_planes.h"
#include "server/compute/cuda/block_reductions.h"
#include "server/compute/cuda/router.h"
#include "server/compute/cuda/row_planes.h"

namespace c3po::cuda {
namespace {

using namespace device;  // NOLINT(google-build-using-namespace): the language of kernels.

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr float kInfinity = __builtin_inff();

C3PO_DEVICE float WeightAt(const void* weights, bool bfloat16, int64_t index) {
  return bfloat16 ? ToFloat(static_cast<const BFloat16*>(weights)[index]) : static_cast<const float*>(weights)[index];
}

// 8 neighboring weights from `index`, a multiple of 8, as they lie.
template <bool kBFloat16>
struct EightWeights {
  Words4 words[kBFloat16 ? 1 : 2];

  C3PO_DEVICE void Load(const void* weights, int64_t index) {
    C3PO_UNROLL for (int i = 0; i < (kBFloat16 ? 1 : 2); ++i) {
      words[i] = LoadOnce(static_cast<const Words4*>(weights) + index / (kBFloat16 ? 8 : 4) + i);
    }
  }
  C3PO_DEVICE float At(int j) const {
    if constexpr (kBFloat16) {
      const uint32_t word = words[0].x[j / 2];
      return FloatOf(j % 2 == 0 ? word << 16 : word & 0xffff0000u);
    } else {
      return FloatOf(words[j / 4].x[j % 4]);
    }
  }
};

// Row `row` of what has a logit: the experts, then the shared expert's gate.
struct LogitRow {
  const void* weights;
  int64_t first;
};
C3PO_DEVICE LogitRow LogitRowOf(const RouterArgs& args, int row) {
  if (row < args.choice.experts) return {args.router, static_cast<int64_t>(row) * args.d};
  return {args.shared_gate, 0};
}

// The logits of rows [first, first + kExperts), behind `end` the last one again: row i's to lane i. 8 loads are under
// way, of as many experts or as many places as there are. A logit's sum is the same whatever kExperts is. A collective
// of the warp.
template <bool kBFloat16, int kExperts>
C3PO_DEVICE float Logits(const RouterArgs& args, const float* normed, int first, int end) {
  constexpr int kSteps = 8 / kExperts, kApart = 32 * 8;
  LogitRow rows[kExperts];
  float logit[kExperts];
  C3PO_UNROLL for (int i = 0; i < kExperts; ++i) {
    rows[i] = LogitRowOf(args, first + i < end ? first + i : end - 1);
    logit[i] = 0;
  }
  if (args.d % 8 == 0) {
    for (int begin = Lane() * 8; begin < args.d; begin += kSteps * kApart) {
      EightWeights<kBFloat16> w[kSteps][kExperts];
      C3PO_UNROLL for (int s = 0; s < kSteps; ++s) {
        if (begin + s * kApart >= args.d) continue;
        C3PO_UNROLL for (int i = 0; i < kExperts; ++i) w[s][i].Load(rows[i].weights,
                                                                    rows[i].first + begin + s * kApart);
      }
      C3PO_UNROLL for (int s = 0; s < kSteps; ++s) {
        if (begin + s * kApart >= args.d) continue;
        C3PO_UNROLL for (int j = 0; j < 8; ++j) {
          const float x = normed[begin + s * kApart + j];
          C3PO_UNROLL for (int i = 0; i < kExperts; ++i) { logit[i] = FusedMultiplyAdd(w[s][i].At(j), x, logit[i]); }
        }
      }
    }
  } else {
    for (int c = Lane(); c < args.d; c += 32) {
      C3PO_UNROLL for (int i = 0; i < kExperts; ++i) {
        logit[i] = FusedMultiplyAdd(WeightAt(rows[i].weights, kBFloat16, rows[i].first + c), normed[c], logit[i]);
      }
    }
  }
  float own = 0;
  C3PO_UNROLL for (int i = 0; i < kExperts; ++i) {
    const float sum = WarpSum(logit[i]);
    if (Lane() == i) own = sum;
  }
  return own;
}

// The logits of rows [begin, end) of row r, dealt to the block's warps: as few at a time as leave no warp without.
template <bool kBFloat16>
C3PO_DEVICE void WriteLogits(const RouterArgs& args, const float* normed, int64_t r, int begin, int end) {
  const int experts = args.router != nullptr ? args.choice.experts : 0;
  const int share = (end - begin + kWarps - 1) / kWarps, at_once = share <= 1 ? 1 : share == 2 ? 2 : 4;
  for (int first = begin + Warp() * at_once; first < end; first += kWarps * at_once) {
    const float logit = at_once == 1   ? Logits<kBFloat16, 1>(args, normed, first, end)
                        : at_once == 2 ? Logits<kBFloat16, 2>(args, normed, first, end)
                                       : Logits<kBFloat16, 4>(args, normed, first, end);
    const int row = first + Lane();
    if (Lane() >= at_once || row >= end) continue;
    if (row < experts) {
      args.logits[r * experts + row] = logit;
    } else {
      args.shared_weights[r] = Divide(1.0f, Add(1.0f, Exp(-logit)));
    }
  }
}

// h of row r to shared memory, and, if this block `writes`, to planes. A thread asks for what it needs of x and of the
// norm at once. A collective of the block.
template <int kPlanes>
C3PO_DEVICE void NormRow(const RouterArgs& args, int64_t r, bool writes, float* normed, float* weight, float* scratch) {
  const float* const x = args.x + r * args.d;
  const int d = args.d, padded = static_cast<int>(RoundUp(d, kChunkColumns));
  const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  const bool norm_aligned = reinterpret_cast<uintptr_t>(args.norm) % 16 == 0;
  constexpr int kAtOnce = 2;
  float squares = 0;
  for (int first = 4 * Thread(); first < d; first += kAtOnce * 4 * kThreads) {
    float of_x[kAtOnce][4], of_norm[kAtOnce][4];
    C3PO_UNROLL for (int i = 0; i < kAtOnce; ++i) {
      LoadFour(x, first + i * 4 * kThreads, d, aligned, of_x[i]);
      LoadFour(args.norm, first + i * 4 * kThreads, d, norm_aligned, of_norm[i]);
    }
    C3PO_UNROLL for (int i = 0; i < kAtOnce; ++i) {
      C3PO_UNROLL for (int j = 0; j < 4; ++j) {
        const int c = first + i * 4 * kThreads + j;
        if (c >= d) continue;
        normed[c] = of_x[i][j];
        weight[c] = of_norm[i][j];
        squares = FusedMultiplyAdd(of_x[i][j], of_x[i][j], squares);
      }
    }
  }
  const float factor = InverseRms(BlockSum(squares, scratch), d, args.eps);
  for (int c = Thread(); c < padded; c += kThreads) {
    const float y = c < d ? Multiply(Multiply(normed[c], factor), weight[c]) : 0.0f;
    if (c < d) normed[c] = y;
    if (writes) StorePlanes<kPlanes>(args.normed, r, c, y);
  }
}

// The experts of row r from its logits. `p`, `candidate` [E], `order` [k]: shared. A collective of the block.
C3PO_DEVICE void Choose(const RouterArgs& args, int64_t r, float* p, float* candidate, int* order) {
  const ExpertChoice& choice = args.choice;
  const int experts = choice.experts, k = choice.k, taken = args.counts != nullptr ? args.counts[r] : k;
  const RowOverride given = args.overrides != nullptr ? args.overrides[r] : RowOverride{};
  const bool replaced = given.values != nullptr && given.replaces != 0;
  for (int e = Thread(); e < experts; e += Threads()) {
    const float logit = args.logits[r * experts + e];
    p[e] = replaced ? given.values[e] : given.values != nullptr ? Add(logit, given.values[e]) : logit;
  }
  SyncBlock();
  if (!replaced) {
    float top = -kInfinity;  // Each warp finds it for itself.
    for (int e = Lane(); e < experts; e += 32) top = Larger(top, p[e]);
    top = WarpMax(top);
    for (int e = Thread(); e < experts; e += Threads()) candidate[e] = Exp(Subtract(p[e], top));
    SyncBlock();
    float sum = 0;
    for (int e = Lane(); e < experts; e += 32) sum = Add(sum, candidate[e]);
    const float inverse = Divide(1.0f, WarpSum(sum));
    for (int e = Thread(); e < experts; e += Threads()) p[e] = Multiply(candidate[e], inverse);
    SyncBlock();
  }
  for (int e = Thread(); e < experts; e += Threads()) {
    if (args.probabilities != nullptr) args.probabilities[r * experts + e] = p[e];
    candidate[e] = p[e] != p[e] ? kInfinity : p[e];
  }
  SyncBlock();
  const int groups = choice.groups, size = experts / groups;
  if (choice.groups_per_token < groups) {
    // order[g] is used for whether group g is left out.
    for (int g = Thread(); g < groups; g += Threads()) {
      float own = candidate[g * size];
      for (int i = 1; i < size; ++i) own = Larger(own, candidate[g * size + i]);
      int before = 0;
      for (int other = 0; other < groups; ++other) {
        float top = candidate[other * size];
        for (int i = 1; i < size; ++i) top = Larger(top, candidate[other * size + i]);
        before += top > own || (top == own && other < g) ? 1 : 0;
      }
      order[g] = before >= choice.groups_per_token ? 1 : 0;
    }
    SyncBlock();
    for (int e = Thread(); e < experts; e += Threads()) {
      if (order[e / size] != 0) candidate[e] = -1;
    }
    SyncBlock();
  }
  for (int e = Thread(); e < experts; e += Threads()) {
    const float own = candidate[e];
    int before = 0;
    for (int other = 0; other < experts; ++other) {
      before += candidate[other] > own || (candidate[other] == own && other < e) ? 1 : 0;
    }
    if (before < taken) order[before] = e;
  }
  SyncBlock();
  float total = 0;
  for (int j = 0; j < taken; ++j) total = Add(total, p[order[j]]);
  for (int j = taken + Thread(); j < k; j += Threads()) {
    args.selected[r * k + j] = -1;
    args.weights[r * k + j] = 0;
  }
  for (int j = Thread(); j < taken; j += Threads()) {
    float w = p[order[j]];
    if (choice.normalizes != 0) w = Divide(w, total);
    args.selected[r * k + j] = order[j];
    args.weights[r * k + j] = choice.factor == 1 ? w : Multiply(w, choice.factor);
  }
  if (args.totals != nullptr && Thread() == 0) args.totals[r] = total;
}

C3PO_DEVICE void LeavePadding(const RouterArgs& args, int64_t r) {
  for (int j = Thread(); j < args.choice.k && args.router != nullptr; j += Threads()) {
    args.selected[r * args.choice.k + j] = -1;
    args.weights[r * args.choice.k + j] = 0;
  }
  if (args.shared_weights != nullptr && Thread() == 0) args.shared_weights[r] = 0;
}

// Shared memory: floats [d] normed, [d] norm, [E] probabilities, [E] candidates, [warps]; ints [max(k, groups)] order,
// [1].
int SharedBytesOf(const RouterArgs& args) {
  const ExpertChoice& choice = args.choice;
  return (2 * args.d + 2 * choice.experts + kWarps + (choice.k > choice.groups ? choice.k : choice.groups) + 1) * 4;
}

template <int kPlanes, bool kBFloat16>
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 1) Route(RouterArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const ExpertChoice& choice = args.choice;
  const int experts = args.router != nullptr ? choice.experts : 0, d = args.d;
  const int64_t r = Block();
  if (args.row_count != nullptr && r >= *args.row_count) {
    if (BlockY() == 0) LeavePadding(args, r);
    return;
  }
  float* const normed = static_cast<float*>(SharedMemory());
  float* const weight = normed + d;
  float* const p = weight + d;
  float* const candidate = p + choice.experts;
  float* const scratch = candidate + choice.experts;
  int* const last = reinterpret_cast<int*>(scratch + kWarps);
  int* const order = last + 1;

  NormRow<kPlanes>(args, r, BlockY() == 0 && args.normed.data != nullptr, normed, weight, scratch);
  if (experts == 0 && args.shared_gate == nullptr) return;
  SyncBlock();

  const int all = experts + (args.shared_gate != nullptr ? 1 : 0);
  const int part = (all + BlocksY() - 1) / BlocksY(), begin = BlockY() * part;
  const int end = begin + part < all ? begin + part : all;
  WriteLogits<kBFloat16>(args, normed, r, begin, end);
  if (experts == 0) return;
  if (BlocksY() > 1) {
    if (!IsLastToArrive(args.arrived + r, BlocksY(), last)) return;
  } else {
    SyncBlock();
  }
  Choose(args, r, p, candidate, order);
}

// grid.y: columns of dJ/dh, a thread each. Every block finds the row's dlogits for itself.
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 4) RouteBackward(RouterBackwardArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const ExpertChoice& choice = args.choice;
  const int experts = choice.experts, k = choice.k;
  const int64_t r = Block();
  const bool writes = BlockY() == 0;
  float* const dp = static_cast<float*>(SharedMemory());  // [E]
  float* const dlogits = dp + experts;                    // [E]
  const int* const selected = args.selected + r * k;
  const float* const dw = args.dweights + r * k;
  const float* const p = args.probabilities + r * experts;
  for (int e = Thread(); e < experts; e += Threads()) dp[e] = 0;
  SyncBlock();
  double mean = 0;
  for (int j = 0; choice.normalizes != 0 && j < k; ++j) mean += double{dw[j]} * args.weights[r * k + j];
  for (int j = Thread(); j < k; j += Threads()) {
    if (selected[j] < 0) continue;
    dp[selected[j]] =
        choice.normalizes != 0 ? static_cast<float>((dw[j] - mean) / args.totals[r]) : Multiply(dw[j], choice.factor);
  }
  SyncBlock();
  double slope = 0;
  for (int j = 0; choice.normalizes == 0 && j < k; ++j) {
    if (selected[j] >= 0) slope += double{dp[selected[j]]} * p[selected[j]];
  }
  for (int e = Thread(); e < experts; e += Threads()) {
    dlogits[e] = static_cast<float>(p[e] * (dp[e] - slope));
    if (!writes) continue;
    args.dprobabilities[r * experts + e] = dp[e];
    args.dlogits[r * experts + e] = dlogits[e];
  }
  SyncBlock();
  const int64_t c = static_cast<int64_t>(BlockY()) * kThreads + Thread();
  if (args.dnormed == nullptr || c >= args.d) return;
  const bool bfloat16 = args.bfloat16_weights != 0;
  float sum = args.dnormed[r * args.d + c];
  if (args.shared_gate != nullptr) {
    const float gate = args.shared_weights[r];
    const float dgate = Multiply(args.dshared_weights[r], Multiply(gate, Subtract(1.0f, gate)));
    sum = FusedMultiplyAdd(dgate, WeightAt(args.shared_gate, bfloat16, c), sum);
  }
  const RowOverride given = args.overrides != nullptr ? args.overrides[r] : RowOverride{};
  if (given.values == nullptr || given.replaces == 0) {
    constexpr int kAtOnce = 8;
    float routed = 0;
    for (int first = 0; first < experts; first += kAtOnce) {
      float w[kAtOnce];
      C3PO_UNROLL for (int i = 0; i < kAtOnce; ++i) {
        w[i] =
            first + i < experts ? WeightAt(args.router, bfloat16, static_cast<int64_t>(first + i) * args.d + c) : 0.0f;
      }
      C3PO_UNROLL for (int i = 0; i < kAtOnce; ++i) {
        if (first + i < experts) routed = FusedMultiplyAdd(dlogits[first + i], w[i], routed);
      }
    }
    sum = Add(sum, routed);
  }
  args.dnormed[r * args.d + c] = sum;
}

C3PO_KERNEL void C3PO_BOUNDS(128, 8) SumOverRows(RoutingSumsArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  const int s = Block(), experts = args.experts;
  for (int e = Thread(); e < experts; e += Threads()) {
    double total = 0;
    bool named = false;
    for (int i = 0; i < args.count; ++i) {
      const RoutingSum& entry = args.entries[i];
      if (entry.sum != s) continue;
      named = true;
      const float* const from = entry.replaces != 0 ? args.dprobabilities : args.dlogits;
      for (int64_t r = entry.begin; r < entry.end; ++r) total += from[r * experts + e];
    }
    if (named) args.sums[s * args.stride + e] = static_cast<float>(total);
  }
}

C3PO_KERNEL void C3PO_BOUNDS(kThreads, 4) NormBackward(NormBackwardArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  float* const scratch = static_cast<float*>(SharedMemory());
  const int64_t r = Block();
  const float* const x = args.x + r * args.x_stride;
  const float* const dy = args.dy + r * args.dy_stride;
  float squares = 0, along = 0;
  for (int c = Thread(); c < args.size; c += Threads()) {
    squares = FusedMultiplyAdd(x[c], x[c], squares);
    along = FusedMultiplyAdd(Multiply(dy[c], args.weight[c]), x[c], along);
  }
  squares = BlockSum(squares, scratch);
  along = BlockSum(along, scratch);
  // mean(g n) n rstd = mean(g x) rstd^3 x.
  const double rstd = 1 / sqrt(double{squares} / args.size + double{args.eps});
  const float slope = static_cast<float>(double{along} / args.size * rstd * rstd * rstd);
  const float factor = static_cast<float>(rstd);
  for (int c = Thread(); c < args.size; c += Threads()) {
    const float g = Multiply(dy[c], args.weight[c]);
    float dx = FusedMultiplyAdd(-slope, x[c], Multiply(factor, g));
    if (args.add != nullptr) dx = Add(args.add[r * args.add_stride + c], dx);
    args.dx[r * args.dx_stride + c] = dx;
  }
}

template <int kPlanes>
Error LaunchRoute(const RouterArgs& args, Stream stream) {
  return LaunchEarly(args.bfloat16_weights != 0 ? Route<kPlanes, true> : Route<kPlanes, false>,
                     Grid{args.rows, args.blocks_per_row}, kThreads, SharedBytesOf(args), stream, args);
}

}  // namespace

Error LaunchRouter(const RouterArgs& args, Stream stream) {
  if (args.rows == 0) return nullptr;
  return args.planes == 1 ? LaunchRoute<1>(args, stream) : LaunchRoute<3>(args, stream);
}

Error LaunchRouterBackward(const RouterBackwardArgs& args, Stream stream) {
  if (args.rows == 0) return nullptr;
  const Grid grid{args.rows, args.dnormed != nullptr ? (args.d + kThreads - 1) / kThreads : 1};
  return LaunchEarly(RouteBackward, grid, kThreads, 2 * args.choice.experts * 4, stream, args);
}

Error LaunchRoutingSums(const RoutingSumsArgs& args, Stream stream) {
  if (args.sum_rows == 0) return nullptr;
  return LaunchEarly(SumOverRows, Grid{args.sum_rows}, 128, 0, stream, args);
}

Error LaunchNormBackward(const NormBackwardArgs& args, Stream stream) {
  if (args.rows == 0) return nullptr;
  return LaunchEarly(NormBackward, Grid{args.rows}, kThreads, kWarps * 4, stream, args);
}

}  // namespace c3po::cuda
