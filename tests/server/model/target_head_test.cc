// The LM head's loss and gradient on both backends, against autograd over the words of the definition.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/server/model/tiny_on_aten.h"

namespace c3po {
namespace {

// Targets of some rows, as NewTargets takes them.
struct Head {
  int64_t row_count;
  std::vector<int64_t> rows, tokens;
  bool targets_only;
};

struct Outcome {
  std::vector<float> logprobs, gradient;
};

constexpr int64_t kRows = 9;

Outcome RunOn(Backend& backend, const std::vector<Head>& heads, const std::vector<float>& hidden,
              const std::vector<float>& dlogprobs) {
  std::vector<std::shared_ptr<const TargetTokens>> owned;
  std::vector<const TargetTokens*> targets;
  for (const Head& head : heads) {
    owned.push_back(backend.NewTargets(head.row_count, head.rows, head.tokens, head.targets_only));
    targets.push_back(owned.back().get());
  }
  const auto read = [&](const OwnedMatrix& matrix) {
    std::vector<float> values(static_cast<size_t>(matrix.view().rows * matrix.view().columns));
    backend.Read(matrix.view(), absl::MakeSpan(values));
    return values;
  };
  const OwnedMatrix x = backend.AllocateHidden(kRows);
  backend.Write(hidden, x.view());
  std::unique_ptr<Tape> tape;
  Outcome outcome{read(backend.TargetLogprobs(targets, x, &tape)), {}};
  outcome.gradient = read(backend.TargetLogprobsBackward(targets, *tape, dlogprobs));
  EXPECT_EQ(read(backend.TargetLogprobs(targets, x, nullptr)), outcome.logprobs);
  return outcome;
}

// sum over targets of coefficient * log softmax(RmsNorm(h) W^T / divisor), by autograd.
Outcome ByAutograd(const ModelConfig& config, const aten::MoeWeights& weights, const std::vector<Head>& heads,
                   const std::vector<float>& hidden, const std::vector<float>& dlogprobs) {
  const at::Tensor h = at::tensor(at::ArrayRef<float>(hidden)).view({kRows, -1}).set_requires_grad(true);
  const at::Tensor variance = h.pow(2).mean(-1, true);
  const at::Tensor normed = h * at::rsqrt(variance + config.rms_norm_eps) * weights.final_norm.clone();
  const at::Tensor lm_head = weights.lm_head.clone();
  Outcome outcome;
  at::Tensor total = at::zeros({}, at::kFloat);
  int64_t row = 0;
  size_t target = 0;
  for (const Head& head : heads) {
    at::Tensor logits = normed.narrow(0, row, head.row_count).matmul(lm_head.t()) / config.logits_divisor;
    if (head.targets_only) {
      at::Tensor others = at::ones({logits.size(1)}, at::kBool);
      for (const int64_t token : head.tokens) others[token] = false;
      logits = logits.masked_fill(others, -std::numeric_limits<float>::infinity());
    }
    const at::Tensor logp = at::log_softmax(logits, -1);
    for (size_t t = 0; t < head.rows.size(); ++t, ++target) {
      const at::Tensor own = logp[head.rows[t]][head.tokens[t]];
      outcome.logprobs.push_back(own.item<float>());
      total = total + own * dlogprobs[target];
    }
    row += head.row_count;
  }
  total.backward();
  const at::Tensor gradient = h.grad().contiguous();
  outcome.gradient.assign(gradient.const_data_ptr<float>(), gradient.const_data_ptr<float>() + gradient.numel());
  return outcome;
}

class TargetHeadWays : public testing::TestWithParam<const char*> {};

TEST_P(TargetHeadWays, CpuKernelsAndAtenGiveTheLossAndGradientOfAutograd) {
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  const int64_t vocabulary = model->shape().vocabulary_size;
  at::manual_seed(5);
  const at::Tensor random = at::randn({kRows, model->shape().hidden_size});
  const std::vector<float> hidden(random.const_data_ptr<float>(), random.const_data_ptr<float>() + random.numel());
  // Two that share a product, rows with two targets and with none, and one whose softmax is over its targets.
  const std::vector<Head> heads = {
      {3, {0, 2, 2}, {5, 7, vocabulary - 1}, false}, {2, {0, 1}, {7, 9}, true}, {4, {3, 0, 1}, {0, 5, 5}, false}};
  const std::vector<float> dlogprobs = {-0.5f, 0.25f, -1.0f, 1.0f, -2.0f, 0.125f, -0.75f, 0.5f};
  const ModelConfig& config = model->config();
  const Outcome expected = ByAutograd(config, TinyTensors(GetParam(), config), heads, hidden, dlogprobs);
  const std::unique_ptr<Backend> aten = TinyOnAten(GetParam(), config);
  for (Backend* backend : {&model->backend(), aten.get()}) {
    SCOPED_TRACE(backend == aten.get() ? "ATen" : "the CPU's kernels");
    const Outcome outcome = RunOn(*backend, heads, hidden, dlogprobs);
    ASSERT_EQ(outcome.logprobs.size(), expected.logprobs.size());
    for (size_t t = 0; t < expected.logprobs.size(); ++t) {
      EXPECT_NEAR(outcome.logprobs[t], expected.logprobs[t], 2e-5) << "target " << t;
    }
    ASSERT_EQ(outcome.gradient.size(), expected.gradient.size());
    for (size_t i = 0; i < expected.gradient.size(); ++i) EXPECT_NEAR(outcome.gradient[i], expected.gradient[i], 2e-5);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TargetHeadWays,
                         testing::Values("olmoe_tiny", "granite_moe_tiny", "deepseek_v2_tiny"));

}  // namespace
}  // namespace c3po
