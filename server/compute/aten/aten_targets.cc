// An objective's reading of the LM head at its targets.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include <utility>
#include <vector>

#include "server/compute/aten/aten_backend.h"
#include "server/compute/aten/matrix_tensors.h"
#include "server/compute/aten/target_head.h"

namespace c3po::aten {
namespace {

struct ReadTokens final : TargetTokens {
  explicit ReadTokens(TargetHead own) : head(std::move(own)) {}
  TargetHead head;
};

struct TargetTape final : Tape {
  TargetHeadTape heads;
};

std::vector<const TargetHead*> HeadsOf(absl::Span<const TargetTokens* const> targets) {
  std::vector<const TargetHead*> heads;
  for (const TargetTokens* tokens : targets) heads.push_back(&static_cast<const ReadTokens*>(tokens)->head);
  return heads;
}

}  // namespace

std::shared_ptr<const TargetTokens> AtenBackend::NewTargets(int64_t row_count, absl::Span<const int64_t> rows,
                                                            absl::Span<const int64_t> tokens, bool targets_only) {
  const c10::InferenceMode inference;
  return std::make_shared<ReadTokens>(TargetHead::Make(weights_.lm_head, row_count, rows, tokens, targets_only));
}

OwnedMatrix AtenBackend::TargetLogprobs(absl::Span<const TargetTokens* const> targets, const OwnedMatrix& hidden,
                                        std::unique_ptr<Tape>* tape_out) {
  const c10::InferenceMode inference;
  auto tape = tape_out ? std::make_unique<TargetTape>() : nullptr;
  const at::Tensor logprobs =
      RunTargetHeads(HeadsOf(targets), TensorOf(hidden, device()), weights_, config_, tape ? &tape->heads : nullptr);
  if (tape_out) *tape_out = std::move(tape);
  return MatrixOf(logprobs.unsqueeze(0));
}

OwnedMatrix AtenBackend::TargetLogprobsBackward(absl::Span<const TargetTokens* const> targets, const Tape& tape,
                                                absl::Span<const float> dlogprobs) {
  const c10::InferenceMode inference;
  return MatrixOf(TargetHeadsBackward(HeadsOf(targets), static_cast<const TargetTape&>(tape).heads,
                                      Upload(dlogprobs, device()), weights_, config_));
}

}  // namespace c3po::aten
