// One block: cases are few, and what a thread adds up is short. Three stages, each of which reads what all threads
// wrote in the one before: scores of continuations, their derivatives, those of targets.
#include <cmath>

#include "index/base/cuda/device.h"
#include "server/compute/cuda/target_loss.h"

namespace c3po::cuda {
namespace {

using namespace device;  // NOLINT(google-build-using-namespace): the language of kernels.

constexpr int kThreads = 128;
constexpr double kCancels = 1e-12;  // Of the magnitudes added, far above what double rounds.

constexpr double kCertain = -1e-7;  // A mean log-probability that is larger counts as this.

// Of the answers of case i's partners.
C3PO_DEVICE void AddPairs(const TargetLossArgs& args, int i, int gold) {
  for (int p = args.pair_begin[i]; p < args.pair_begin[i + 1]; ++p) {
    const PairPlaces at = args.pairs[p];
    const double margin =
        (args.scores[gold] - args.scores[at.own_other]) + (args.scores[at.answer] - args.scores[at.other]);
    args.derivatives[at.own_other] += args.pair_weights[p] / (1 + exp(margin));
  }
}

// Of the softmax over case i's continuations.
C3PO_DEVICE void AddProbabilities(const TargetLossArgs& args, int i, int begin, int end) {
  const double weight = args.case_weights[i];
  double top = args.scores[begin];
  for (int c = begin + 1; c < end; ++c) top = top < args.scores[c] ? args.scores[c] : top;
  double sum = 0;
  for (int c = begin; c < end; ++c) sum += exp(args.scores[c] - top);
  for (int c = begin; c < end; ++c) {
    const double exponential = exp(args.scores[c] - top);
    if (args.contrasts != 0) args.derivatives[c] = weight * exponential / sum;
    if (args.trust > 0) args.derivatives[c] += args.trust * weight * (exponential / sum - args.base[c]);
  }
}

C3PO_DEVICE void WeighCase(const TargetLossArgs& args, int i) {
  const int begin = args.case_begin[i], end = args.case_begin[i + 1], gold = begin + args.case_gold[i];
  const bool alone = end - begin == 1, over_pairs = args.pair_begin != nullptr;
  for (int c = begin; c < end; ++c) args.derivatives[c] = 0;
  if (over_pairs) AddPairs(args, i, gold);
  if (!alone && (args.contrasts != 0 || args.trust > 0)) AddProbabilities(args, i, begin, end);
  double of_gold = 0;
  for (int c = begin; c < end; ++c) {
    if (c != gold) of_gold -= args.derivatives[c];
  }
  if (!over_pairs && (args.contrasts == 0 || alone)) of_gold -= args.case_weights[i];
  if (alone && args.trust > 0) {
    const double score = kCertain < args.scores[gold] ? kCertain : args.scores[gold];
    of_gold += args.trust * args.case_weights[i] * (exp(score) - args.base[gold]) / -expm1(score);
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
