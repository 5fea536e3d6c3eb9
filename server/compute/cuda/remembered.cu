#include "index/base/cuda/device.h"
#include "server/compute/cuda/remembered.h"

namespace c3po::cuda {
namespace {

constexpr int kThreads = 256;

C3PO_KERNEL void C3PO_BOUNDS(kThreads, 1) SelectAll(SelectAllArgs args) {
  const int64_t i = int64_t{device::Block()} * kThreads + device::Thread();
  if (i < int64_t{args.rows} * args.experts) args.selected[i] = static_cast<int>(i % args.experts);
}

// A block is kThreads columns of one row. The row's experts in ascending order: each step takes the least above the
// last.
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 4) MixRemembered(MixRememberedArgs args) {
  const int row = device::BlockY(), column = device::Block() * kThreads + device::Thread();
  if (column >= args.d) return;
  const int* const selected = args.selected + int64_t{row} * args.k;
  const float* const weights = args.weights + int64_t{row} * args.k;
  const float* const outputs = args.outputs + int64_t{row} * args.experts * args.d + column;
  float sum = 0;
  for (int last = -1;;) {
    int next = args.experts, at = -1;
    for (int j = 0; j < args.k; ++j) {
      if (selected[j] > last && selected[j] < next) {
        next = selected[j];
        at = j;
      }
    }
    if (at < 0) break;
    sum = device::FusedMultiplyAdd(weights[at], outputs[int64_t{next} * args.d], sum);
    last = next;
  }
  const int64_t i = int64_t{row} * args.d + column;
  if (args.shared != nullptr) sum = device::Add(sum, args.shared[i]);
  args.out[i] = device::FusedMultiplyAdd(args.factor, sum, args.x[i]);
}

// A warp is one pair.
C3PO_KERNEL void C3PO_BOUNDS(kThreads, 4) MixRememberedBackward(MixRememberedBackwardArgs args) {
  const int pair = device::Block() * device::Warps() + device::Warp();
  if (pair >= args.rows * args.k) return;
  const int row = pair / args.k, expert = args.selected[pair];
  const bool counts = expert >= 0 && expert < args.experts;
  const float* const dout = args.dout + int64_t{row} * args.d;
  const float* const output = args.outputs + (int64_t{row} * args.experts + (counts ? expert : 0)) * args.d;
  float sum = 0;
  for (int c = device::Lane(); counts && c < args.d; c += 32) sum = device::FusedMultiplyAdd(dout[c], output[c], sum);
  C3PO_UNROLL
  for (int mask = 16; mask > 0; mask /= 2) sum = device::Add(sum, device::ShuffleXor(sum, mask));
  if (device::Lane() == 0) args.dweights[pair] = counts ? device::Multiply(args.factor, sum) : 0.0f;
}

}  // namespace

Error LaunchSelectAll(const SelectAllArgs& args, Stream stream) {
  const int64_t all = int64_t{args.rows} * args.experts;
  return device::Launch(SelectAll, device::Grid{static_cast<int>((all + kThreads - 1) / kThreads)}, kThreads, 0, stream,
                        args);
}

Error LaunchMixRemembered(const MixRememberedArgs& args, Stream stream) {
  return device::Launch(MixRemembered, device::Grid{(args.d + kThreads - 1) / kThreads, args.rows}, kThreads, 0, stream,
                        args);
}

Error LaunchMixRememberedBackward(const MixRememberedBackwardArgs& args, Stream stream) {
  constexpr int kWarps = kThreads / 32;
  return device::Launch(MixRememberedBackward, device::Grid{(args.rows * args.k + kWarps - 1) / kWarps}, kThreads, 0,
                        stream, args);
}

}  // namespace c3po::cuda
