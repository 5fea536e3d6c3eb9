// libtorch's own products, each way beside another.

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "server/compute/aten/causal_attention.h"
#include "server/compute/aten/products.h"
#include "server/compute/aten/rope_tensors.h"
#include "server/compute/aten/row_operations.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {
namespace {

// Sequences of one row are padded to one length, or to two where few slots may be together.
TEST(CachedRows, PadsTogetherWhatTakesFewSlots) {
  const std::vector<KvRun> runs[] = {{{40, 2}, {3, 1}}, {{10, 1}, {30, 9}}, {{50, 1}}, {{20, 5}, {0, 2}}};
  const std::vector<SequenceRuns> sequences = {
      {0, 1, 2, runs[0]}, {1, 1, 9, runs[1]}, {2, 1, 0, runs[2]}, {3, 3, 3, runs[3]}};
  const std::unique_ptr<MoeModel> model = LoadTiny("olmoe_tiny");
  const ModelConfig& config = model->config();
  at::manual_seed(5);
  const c10::InferenceMode inference;
  const at::Tensor q = at::randn({6, config.heads, config.head_dim});
  const at::Tensor k = at::randn({6, config.kv_heads, config.head_dim}), v = at::randn_like(k);
  const at::Tensor keys = at::randn({config.kv_heads, 64, config.head_dim}), values = at::randn_like(keys);
  std::vector<at::Tensor> contexts;
  for (const int64_t slots_max : {6, 1000}) {
    const auto rows = aten::CachedRows::Make(sequences, at::kCPU, slots_max);
    EXPECT_EQ(rows.singles.size(), slots_max == 6 ? 2u : 1u);
    contexts.push_back(aten::CachedAttention(q, k, v, rows, keys.clone(), values.clone(), config));
  }
  EXPECT_TRUE(at::allclose(contexts[0], contexts[1], 1e-5, 1e-5));
}

TEST(MultiplyGroups, IsEachGroupsProduct) {
  at::manual_seed(6);
  const at::Tensor x = at::randn({10, 16}), ends = at::tensor({0, 3, 3, 10}, at::kInt);
  const at::Tensor networks = at::randn({4, 24, 16}), side_by_side = at::randn({16, 4, 24});
  for (const at::Tensor& matrices :
       {networks.transpose(1, 2), at::randn({4, 16, 8}), side_by_side.permute({1, 0, 2})}) {
    const at::Tensor each = aten::MultiplyEachGroup(x, matrices, ends);
    ASSERT_EQ(each.sizes(), (std::vector<int64_t>{10, matrices.size(2)}));
    EXPECT_TRUE(at::allclose(each.narrow(0, 0, 3), at::matmul(x.narrow(0, 0, 3), matrices[1])));
    EXPECT_TRUE(at::allclose(each.narrow(0, 3, 7), at::matmul(x.narrow(0, 3, 7), matrices[3])));
    EXPECT_TRUE(at::allclose(aten::MultiplyGroups(x, matrices, ends), each, 1e-5, 1e-5));
  }
}

// ATen's two ways, with autograd and without.
TEST(Rotate, IsTheSameWithAutogradAndWithout) {
  const std::unique_ptr<MoeModel> model = LoadTiny("deepseek_tiny");
  at::manual_seed(8);
  const at::Tensor x = at::randn({4, model->config().heads, model->config().rope_dim}, at::kDouble),
                   y = at::randn_like(x);
  const aten::RopeTensors rope = aten::RopeTensors::Of(aten::MakeRopeTable(model->config()), at::kCPU)
                                     .Select(at::tensor({0, 1, 7, 30}, at::kLong), at::kDouble);
  for (const bool inverse : {false, true}) {
    const at::Tensor tracked = aten::Rotate(x, rope, inverse);
    const c10::InferenceMode inference;
    EXPECT_TRUE(at::allclose(aten::Rotate(x, rope, inverse), tracked, 1e-12, 1e-12));
    const double there = (tracked * y).sum().item<double>(),
                 back = (x * aten::Rotate(y, rope, !inverse)).sum().item<double>();
    EXPECT_NEAR(there, back, 1e-9);  // The one is the other transposed.
  }
}

}  // namespace
}  // namespace c3po
