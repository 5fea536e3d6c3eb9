// A layer's arithmetic has two paths: the kernels of server/model/cpu, and ATen (on a GPU, and where autograd is on).
// Here both run on the same rows of every family.

#include "server/model/layer_math.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <optional>

#include "server/model/causal_attention.h"
#include "server/model/matrix_product.h"
#include "server/model/moe_model.h"
#include "server/model/tree_attention.h"

namespace c3po {
namespace {

class LayerMath : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    MoeModelOptions options;
    options.folder = std::string(C3PO_TESTDATA_DIR) + "/model/" + GetParam();
    options.dtype = "float32";
    auto model = MoeModel::Load(options);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  // What `compute` gives on each path, entry by entry.
  static void ExpectBothPathsAgree(const std::function<std::vector<at::Tensor>()>& compute) {
    const std::vector<at::Tensor> aten = compute();
    const c10::InferenceMode inference;
    const std::vector<at::Tensor> kernels = compute();
    ASSERT_EQ(aten.size(), kernels.size());
    for (size_t i = 0; i < aten.size(); ++i) {
      ASSERT_EQ(aten[i].sizes(), kernels[i].sizes()) << "result " << i;
      const double size = kernels[i].abs().max().item<double>();
      EXPECT_LE((aten[i] - kernels[i]).abs().max().item<double>(), 1e-5 * (1 + size)) << "result " << i;
    }
  }

  std::unique_ptr<MoeModel> model_;
};

TEST_P(LayerMath, FeedForwardAndItsGradientAgree) {
  const ModelConfig& config = model_->config();
  at::manual_seed(1);
  const at::Tensor normed = at::randn({9, config.hidden_size}), dout = at::randn({9, config.hidden_size});
  for (const LayerWeights& layer : model_->weights().layers) {
    ExpectBothPathsAgree([&] {
      Mixing mixing;
      if (layer.router.defined()) mixing = MixExperts(normed, layer, config, {});
      FeedForwardTape tape;
      const at::Tensor out = RunFeedForward(normed, mixing, layer, &tape);
      at::Tensor dweights = at::zeros({1});
      const at::Tensor dnormed = FeedForwardBackward(dout, normed, mixing, layer, tape, dweights);
      return std::vector<at::Tensor>{out, dnormed, dweights};
    });
  }
}

// With a shift in some rows and given weights in others, as requests of one batch have them.
TEST_P(LayerMath, MixingAgreesUnderEveryOverride) {
  const ModelConfig& config = model_->config();
  at::manual_seed(3);
  const int64_t rows = 40, experts = config.experts;
  const at::Tensor normed = at::randn({rows, config.hidden_size});
  LayerRouting shifted, given, both;
  both.shift = shifted.shift = at::randn({rows, experts});
  both.weights = given.weights = at::softmax(at::randn({rows, experts}), -1);
  both.weights_rows = given.weights_rows = at::rand({rows, 1}) < 0.5;
  for (const LayerWeights& layer : model_->weights().layers) {
    if (!layer.router.defined()) continue;
    for (const LayerRouting& routing : {LayerRouting(), shifted, given, both}) {
      ExpectBothPathsAgree([&] {
        const Mixing mixing = MixExperts(normed, layer, config, routing);
        std::vector<at::Tensor> results = {mixing.logits, mixing.probabilities, mixing.weights};
        if (config.norm_topk_prob) results.push_back(mixing.total);
        if (mixing.selected.defined()) results.push_back(mixing.selected_mask);
        // Which comes first among equals is nobody's promise: the selected ones, ascending.
        if (mixing.selected.defined()) results.push_back(std::get<0>(mixing.selected.to(at::kFloat).sort(-1)));
        return results;
      });
    }
  }
}

TEST_P(LayerMath, AWeightThatIsNotANumberIsSelected) {
  const ModelConfig& config = model_->config();
  at::manual_seed(4);
  const at::Tensor normed = at::randn({3, config.hidden_size});
  LayerRouting routing;
  routing.weights = at::softmax(at::randn({3, config.experts}), -1);
  routing.weights[1][config.experts - 1] = std::numeric_limits<float>::quiet_NaN();
  routing.weights_rows = at::ones({3, 1}, at::kBool);
  const LayerWeights& layer = model_->weights().layers.back();
  ExpectBothPathsAgree([&] {
    const Mixing mixing = MixExperts(normed, layer, config, routing);
    return std::vector<at::Tensor>{mixing.weights.isnan().to(at::kFloat).amax(-1)};
  });
}

TEST_P(LayerMath, AttentionAndItsGradientAgree) {
  const ModelConfig& config = model_->config();
  at::manual_seed(2);
  const int64_t prefix = 4, moving = 5;
  const at::Tensor normed = at::randn({prefix + moving, config.hidden_size});
  const at::Tensor dcontext = at::randn({moving, int64_t{config.heads} * config.value_dim});
  AnswerTree tree;
  tree.tokens = {1, 2, 3, 4, 5};
  tree.parents = {-1, 0, 0, 1, 3};
  tree.depths = {0, 1, 1, 2, 3};
  const LayerWeights& layer = model_->weights().layers[1];
  ExpectBothPathsAgree([&] {
    const at::Tensor positions = at::tensor({0, 1, 2, 3, 4, 5, 5, 6, 7}, at::kLong);
    const RopeTable rope = model_->rope().Select(positions, at::kFloat);
    const Projections all = ProjectAttention(normed, layer, config, rope);
    const at::Tensor keys = all.k.narrow(0, 0, prefix).transpose(0, 1).contiguous();
    const at::Tensor values = all.v.narrow(0, 0, prefix).transpose(0, 1).contiguous();
    const at::Tensor causal = CausalAttention(all.q.narrow(0, 0, prefix), keys, values, 0, config);
    const auto rest = [&](const at::Tensor& x) { return x.narrow(0, prefix, moving); };
    const Projections own{rest(all.q), rest(all.k), rest(all.v), rest(all.raw)};
    const AnswerTree* const trees[] = {&tree};
    const TreeAttention attention(trees, {static_cast<int>(prefix)}, config, normed.options());
    TreeAttention::Tape tape;
    const at::Tensor context = attention.Forward(own, keys.unsqueeze(0), values.unsqueeze(0), &tape);
    const auto d = attention.Backward(dcontext, tape, keys.unsqueeze(0), values.unsqueeze(0));
    const at::Tensor dnormed =
        ProjectAttentionBackward(d.q, d.k, d.v, own, layer, config, {rest(rope.cos), rest(rope.sin)});
    return std::vector<at::Tensor>{all.q, all.k, all.v, causal, context, d.q, d.k, d.v, dnormed};
  });
}

// ATen's two ways, with autograd and without; in double, which the CPU's kernels do not take.
TEST_P(LayerMath, RotationAgreesWithAndWithoutAutograd) {
  const ModelConfig& config = model_->config();
  at::manual_seed(8);
  const at::Tensor x = at::randn({4, config.heads, config.rope_dim}, at::kDouble), y = at::randn_like(x);
  const RopeTable rope = model_->rope().Select(at::tensor({0, 1, 7, 30}, at::kLong), at::kDouble);
  for (const bool inverse : {false, true}) {
    const at::Tensor tracked = Rotate(x, rope, inverse);
    const c10::InferenceMode inference;
    EXPECT_TRUE(at::allclose(Rotate(x, rope, inverse), tracked, 1e-12, 1e-12));
    const double there = (tracked * y).sum().item<double>(),
                 back = (x * Rotate(y, rope, !inverse)).sum().item<double>();
    EXPECT_NEAR(there, back, 1e-9);  // The one is the other transposed.
  }
}

// Sequences of one row, which ATen pads to one length, or to two where few slots may be together, beside one of three.
TEST_P(LayerMath, CachedAttentionAgrees) {
  const ModelConfig& config = model_->config();
  at::manual_seed(5);
  const std::vector<KvRun> runs[] = {{{40, 2}, {3, 1}}, {{10, 1}, {30, 9}}, {{50, 1}}, {{20, 5}, {0, 2}}};
  const std::vector<cpu::SequenceRows> sequences = {
      {0, 1, 2, runs[0]}, {1, 1, 9, runs[1]}, {2, 1, 0, runs[2]}, {3, 3, 3, runs[3]}};
  const at::Tensor q = at::randn({6, config.heads, config.head_dim});
  const at::Tensor k = at::randn({6, config.kv_heads, config.head_dim});
  const at::Tensor v = at::randn({6, config.kv_heads, config.value_dim});
  const at::Tensor keys = at::randn({config.kv_heads, 64, config.head_dim});
  const at::Tensor values = at::randn({config.kv_heads, 64, config.value_dim});
  for (const int64_t slots_max : {6, 1000}) {
    ExpectBothPathsAgree([&] {
      const bool aten = !OnCpuKernels(q);
      const auto rows =
          CachedRows::Make(sequences, aten ? std::optional<at::Device>(at::kCPU) : std::nullopt, slots_max);
      if (aten) {
        EXPECT_EQ(rows.singles.size(), slots_max == 6 ? 2u : 1u);
      }
      const at::Tensor own_keys = keys.clone(), own_values = values.clone();
      return std::vector<at::Tensor>{CachedAttention(q, k, v, rows, own_keys, own_values, config), own_keys,
                                     own_values};
    });
  }
}

TEST(MultiplyGroups, IsEachGroupsProduct) {
  at::manual_seed(6);
  const at::Tensor x = at::randn({10, 16}), ends = at::tensor({0, 3, 3, 10}, at::kInt);
  const at::Tensor networks = at::randn({4, 24, 16}), side_by_side = at::randn({16, 4, 24});
  for (const at::Tensor& matrices :
       {networks.transpose(1, 2), at::randn({4, 16, 8}), side_by_side.permute({1, 0, 2})}) {
    const at::Tensor each = MultiplyEachGroup(x, matrices, ends);
    ASSERT_EQ(each.sizes(), (std::vector<int64_t>{10, matrices.size(2)}));
    EXPECT_TRUE(at::allclose(each.narrow(0, 0, 3), at::matmul(x.narrow(0, 0, 3), matrices[1])));
    EXPECT_TRUE(at::allclose(each.narrow(0, 3, 7), at::matmul(x.narrow(0, 3, 7), matrices[3])));
    EXPECT_TRUE(at::allclose(MultiplyGroups(x, matrices, ends), each, 1e-5, 1e-5));
  }
}

INSTANTIATE_TEST_SUITE_P(Families, LayerMath,
                         testing::Values("olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny",
                                         "qwen3_moe_tiny", "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny",
                                         "granite_moe_tiny"));

}  // namespace
}  // namespace c3po
