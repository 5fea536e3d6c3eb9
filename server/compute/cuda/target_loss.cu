// One block: cases are few, and what a thread adds up is short. Three stages, each of which reads what all threads wrote
// in the one before: scores of continuations, their derivatives, those of targets.
#include "server/compute/cuda/target_loss.h"

#include <cmath>

#include "index/base/cuda/device.h"

namespace c3po::cuda {
namespace {

using namespace device;  // NOLINT(google-build-using-namespace): the language of kernels.

constexpr int kThreads = 128;
constexpr double kCancels = 1e-12;  // Of the magnitudes added, far above what double rounds.

C3PO_DEVICE void WeighCase(const TargetLossArgs& args, int i) {
  const int begin = args.case_begin[i], end = args.case_begin[i + 1], gold = begin + args.case_gold[i];
  for (int c = begin; c < end; ++c) args.derivatives[c] = 0;
  if (args.contrasts == 0 || end - begin == 1) {
    args.derivatives[gold] = -args.case_weights[i];
    return;
  }
  double top = args.scores[begin];
  for (int c = begin + 1; c < end; ++c) top = top < args.scores[c] ? args.scores[c] : top;
  double sum = 0;
  for (int c = begin; c < end; ++c) sum += exp(args.scores[c] - top);
  double of_gold = 0;
  for (int c = begin; c < end; ++c) {
    if (c == gold) continue;
    const double derivative = args.case_weights[i] * exp(args.scores[c] - top) / sum;
    args.derivatives[c] = derivative;
    of_gold -= derivative;
  }
  args.derivatives[gold] = of_gold;
}

C3PO_KERNEL void C3PO_BOUNDS(kThreads, 1) TargetLoss(TargetLossArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  for (int c = Thread(); c < args.continuations; c += kThreads) {
    const int begin = args.target_begin[c], end = args.target_begin[c + 1];
    double score = 0;
    for (int t = begin; t < end; ++t) score += static_cast<double>(args.logprobs[t]) / (end - begin);
    args.scores[c] = score;
  }
  SyncBlock();
  for (int i = Thread(); i < args.cases; i += kThreads) WeighCase(args, i);
  SyncBlock();
  for (int t = Thread(); t < args.targets; t += kThreads) {
    double sum = 0, size = 0;
    for (int j = args.same_begin[t]; j < args.same_begin[t + 1]; ++j) {
      const int c = args.same[j];
      const double derivative = args.derivatives[c] / (args.target_begin[c + 1] - args.target_begin[c]);
      sum += derivative;
      size += fabs(derivative);
    }
    args.dlogprobs[t] = fabs(sum) > kCancels * size ? static_cast<float>(sum) : 0.0f;
  }
}

}  // namespace

Error LaunchTargetLoss(const TargetLossArgs& args, Stream stream) {
  if (args.targets == 0) return nullptr;
  return LaunchEarly(TargetLoss, Grid{1}, kThreads, 0, stream, args);
}

}  // namespace c3po::cuda
