// The LM head's loss and gradient in both ways, the CPU's kernels and ATen (which a GPU takes), against autograd over
// the words of the definition.

#include "server/model/target_head.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "tests/server/model/neighbor_scenario.h"

namespace c3po {
namespace {

struct Outcome {
  std::vector<std::vector<float>> logprobs;
  at::Tensor gradient;
};

Outcome RunPass(const MoeModel& model, const std::vector<TargetHead>& heads, const at::Tensor& hidden,
                const std::vector<std::vector<float>>& dlogprobs) {
  std::vector<const TargetHead*> pointers;
  for (const TargetHead& head : heads) pointers.push_back(&head);
  TargetHeadPass pass(model, pointers);
  Outcome outcome{pass.Forward(hidden, true), {}};
  outcome.gradient = pass.Backward(dlogprobs);
  TargetHeadPass bare(model, pointers);
  EXPECT_EQ(bare.Forward(hidden, false), outcome.logprobs);
  return outcome;
}

// sum over targets of coefficient * log softmax(RmsNorm(h) W^T / divisor), by autograd.
Outcome ByAutograd(const MoeModel& model, const std::vector<TargetHead>& heads, const at::Tensor& hidden,
                   const std::vector<std::vector<float>>& dlogprobs) {
  const at::Tensor h = hidden.clone().set_requires_grad(true);
  const at::Tensor variance = h.pow(2).mean(-1, true);
  const at::Tensor normed =
      h * at::rsqrt(variance + model.config().rms_norm_eps) * model.weights().final_norm.to(at::kFloat).clone();
  Outcome outcome;
  at::Tensor total = at::zeros({}, at::kFloat);
  int64_t row = 0;
  for (size_t i = 0; i < heads.size(); ++i) {
    const at::Tensor logits =
        normed.narrow(0, row, heads[i].row_count).matmul(heads[i].weights.to(at::kFloat).clone().t()) /
        model.config().logits_divisor;
    const at::Tensor logp = at::log_softmax(logits, -1).index({heads[i].rows.clone(), heads[i].tokens.clone()});
    outcome.logprobs.push_back(ToFloats(logp.detach()));
    total = total + (logp * at::tensor(at::ArrayRef<float>(dlogprobs[i]))).sum();
    row += heads[i].row_count;
  }
  total.backward();
  outcome.gradient = h.grad();
  return outcome;
}

class TargetHeadWays : public testing::TestWithParam<const char*> {};

TEST_P(TargetHeadWays, CpuKernelsAndAtenGiveTheLossAndGradientOfAutograd) {
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  const int64_t hidden_size = model->shape().hidden_size, vocabulary = model->shape().vocabulary_size;
  at::manual_seed(5);
  const at::Tensor hidden = at::randn({9, hidden_size});
  // Two that share a product, rows with two targets and with none, and one whose softmax is over its targets.
  const std::vector<TargetHead> heads = {
      TargetHead::Make(*model, 3, {0, 2, 2}, {5, 7, vocabulary - 1}, false),
      TargetHead::Make(*model, 2, {0, 1}, {7, 9}, true),
      TargetHead::Make(*model, 4, {3, 0, 1}, {0, 5, 5}, false),
  };
  const std::vector<std::vector<float>> dlogprobs = {{-0.5f, 0.25f, -1.0f}, {1.0f, -2.0f}, {0.125f, -0.75f, 0.5f}};
  const Outcome expected = ByAutograd(*model, heads, hidden, dlogprobs);
  for (const bool by_aten : {false, true}) {
    SCOPED_TRACE(by_aten ? "ATen" : "the CPU's kernels");
    const c10::InferenceMode inference;
    const c10::AutoGradMode kernels_off(by_aten);  // See OnCpuKernels.
    const Outcome outcome = RunPass(*model, heads, hidden, dlogprobs);
    ASSERT_EQ(outcome.logprobs.size(), expected.logprobs.size());
    for (size_t i = 0; i < heads.size(); ++i) {
      ASSERT_EQ(outcome.logprobs[i].size(), expected.logprobs[i].size());
      for (size_t t = 0; t < expected.logprobs[i].size(); ++t) {
        EXPECT_NEAR(outcome.logprobs[i][t], expected.logprobs[i][t], 2e-5) << "head " << i << " target " << t;
      }
    }
    EXPECT_LT((outcome.gradient - expected.gradient).abs().max().item<float>(), 2e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TargetHeadWays,
                         testing::Values("olmoe_tiny", "granite_moe_tiny", "deepseek_v2_tiny"));

}  // namespace
}  // namespace c3po
