// A whole model on AtenBackend, forward and back, against plain sequences that autograd differentiates.

#include "server/compute/aten/aten_backend.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <numeric>
#include <vector>

#include "server/compute/aten/causal_attention.h"
#include "server/compute/aten/expert_selection.h"
#include "server/compute/aten/experts.h"
#include "server/compute/aten/matrix_tensors.h"
#include "server/compute/aten/products.h"
#include "server/compute/aten/projections.h"
#include "server/compute/aten/rope_tensors.h"
#include "server/compute/aten/row_operations.h"
#include "tests/server/compute/tensor_weights.h"
#include "tests/server/owned_segment.h"

namespace c3po::aten {
namespace {

using Kind = RoutingOverride::Kind;

struct Case {
  const char* name;
  bool norm_topk_prob;
  int experts_per_token;
  double residual_multiplier;
  int64_t remembered_bytes;
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

constexpr int kLayers = 3, kEntry = 1, kExperts = 6;

// A prompt and the tree below it.
struct Neighbor {
  std::vector<int64_t> prompt, tree;
  std::vector<int> parents, depths;
  std::vector<std::array<int64_t, 2>> targets;  // row of the tree, token

  TreeShape shape() const { return {parents, depths, static_cast<int64_t>(prompt.size())}; }
};

std::vector<Neighbor> Neighbors() {
  return {{{3, 1, 4, 1}, {5, 9, 2, 6}, {-1, 0, 0, 2}, {0, 1, 1, 2}, {{0, 9}, {0, 2}, {1, 7}, {3, 11}}},
          {{8, 2}, {7, 12}, {-1, 0}, {0, 1}, {{0, 12}, {1, 3}}},
          {{}, {10}, {-1}, {0}, {{0, 5}}}};
}

class AtenBackendModel : public testing::TestWithParam<Case> {
 protected:
  AtenBackendModel() {
    config_.family = ModelConfig::Family::kQwen2Moe;  // which names shared experts and their gate
    config_.hidden_size = 16;
    config_.layers = kLayers;
    config_.heads = 4;
    config_.kv_heads = 2;
    config_.head_dim = 8;
    config_.intermediate_size = 12;
    config_.experts = kExperts;
    config_.experts_per_token = GetParam().experts_per_token;
    config_.vocabulary_size = 13;
    config_.context_window = 32;
    config_.norm_topk_prob = GetParam().norm_topk_prob;
    config_.residual_multiplier = GetParam().residual_multiplier;
    config_.shared_intermediate_size = 8;
    config_.shared_gate = true;
    config_.logits_divisor = 1.5;
    config_.embedding_multiplier = 2;
    config_.FillDerived();
    at::manual_seed(11);
    const int64_t d = config_.hidden_size, f = config_.intermediate_size, s = config_.shared_intermediate_size;
    weights_.embedding = at::randn({config_.vocabulary_size, d});
    weights_.lm_head = at::randn({config_.vocabulary_size, d});
    weights_.final_norm = 1 + 0.1 * at::randn({d});
    for (int l = 0; l < kLayers; ++l) {
      LayerWeights layer;
      layer.attention_norm = 1 + 0.1 * at::randn({d});
      layer.qkv = 0.3 * at::randn({64, d});
      layer.output = 0.3 * at::randn({d, 32});
      layer.moe_norm = 1 + 0.1 * at::randn({d});
      layer.router = 0.5 * at::randn({kExperts, d});
      layer.experts = {0.3 * at::randn({kExperts, 2 * f, d}), 0.3 * at::randn({d, kExperts * f})};
      layer.shared = {0.3 * at::randn({1, 2 * s, d}), 0.3 * at::randn({d, s})};
      layer.shared_gate = at::randn({1, d});
      weights_.layers.push_back(layer);
    }
    rope_ = MakeRopeTable(config_);
    backend_ = std::make_unique<AtenBackend>(config_, weights_, rope_);
  }

  OwnedMatrix Hidden(const std::vector<int64_t>& tokens) {
    OwnedMatrix hidden = backend_->AllocateHidden(static_cast<int64_t>(tokens.size()));
    backend_->Embed(tokens, hidden.view());
    return hidden;
  }

  // A neighbor's states, and its tree's rows entering kEntry.
  TreeCase Prepare(const Neighbor& neighbor, std::vector<OwnedMatrix>& entries) {
    const auto prefix = static_cast<int64_t>(neighbor.prompt.size()), moving = neighbor.shape().rows();
    std::vector<int64_t> tokens = neighbor.prompt;
    tokens.insert(tokens.end(), neighbor.tree.begin(), neighbor.tree.end());
    const OwnedMatrix hidden = Hidden(tokens);
    const auto rows = backend_->NewPreparationRows({neighbor.shape()});
    for (int l = 0; l < kEntry; ++l) {
      backend_->PreparationAttention(l, *rows, {}, false, hidden.view());
      backend_->PreparationFeedForward(l, hidden.view());
    }
    entries.push_back(hidden.Rows(prefix, moving));
    if (prefix == 0) return {neighbor.shape(), nullptr};
    const auto states = backend_->NewReferenceStates(kEntry, prefix, moving, [](int64_t) { return false; });
    const Matrix prompt = hidden.view().Rows(0, prefix);
    for (int l = kEntry; l < kLayers; ++l) {
      backend_->PreparationAttention(l, *rows, {states.get()}, l + 1 == kLayers, prompt);
      if (l + 1 < kLayers) backend_->PreparationFeedForward(l, prompt);
    }
    // A block of 8 positions in each layer, and one with the tree's rows.
    EXPECT_EQ(states->bytes(), ((kLayers - kEntry) + 1) * 8 * 2 * 16 * 4);
    return {neighbor.shape(), states};
  }

  std::vector<float> ReadAll(const OwnedMatrix& matrix) {
    std::vector<float> values(static_cast<size_t>(matrix.view().rows * matrix.view().columns));
    backend_->Read(matrix.view(), absl::MakeSpan(values));
    return values;
  }

  // [rows, d] after the last layer of a plain sequence; `values` ([kLayers - kEntry, E]) override row `from` and those
  // after it, from kEntry on, where they are defined.
  at::Tensor PlainSequence(const std::vector<int64_t>& tokens, int64_t from, Kind kind,
                           const at::Tensor& values) const {
    const auto rows = static_cast<int64_t>(tokens.size());
    at::Tensor x = weights_.embedding.index_select(0, at::tensor(tokens, at::kLong)) * config_.embedding_multiplier;
    const RopeTensors rope = RopeTensors::Of(rope_, at::kCPU).Select(at::arange(rows, at::kLong), at::kFloat);
    for (int l = 0; l < kLayers; ++l) {
      const LayerWeights& layer = weights_.layers[static_cast<size_t>(l)];
      const Projections own =
          ProjectAttention(RmsNorm(x, layer.attention_norm, config_.rms_norm_eps), layer, config_, rope);
      const at::Tensor context = CausalAttention(own.q, own.k.transpose(0, 1), own.v.transpose(0, 1), 0, config_);
      x = AddBlock(x, Project(context, layer.output, {}), config_);
      const at::Tensor normed = RmsNorm(x, layer.moe_norm, config_.rms_norm_eps);
      LayerRouting routing;
      if (values.defined() && l >= kEntry) {
        const at::Tensor named = (at::arange(rows) >= from).unsqueeze(1);
        const at::Tensor row = values[l - kEntry].unsqueeze(0);
        if (kind == Kind::kLogitShift) {
          routing.shift = row * named;
        } else {
          routing.weights = row;
          routing.weights_rows = named;
        }
      }
      x = AddBlock(x, RunFeedForward(normed, MixExperts(normed, layer, config_, routing), layer, nullptr), config_);
    }
    return x;
  }

  at::Tensor PlainLogits(const at::Tensor& x) const {
    return MatMulTransposed(RmsNorm(x, weights_.final_norm, config_.rms_norm_eps), weights_.lm_head) /
           config_.logits_divisor;
  }

  ModelConfig config_;
  MoeWeights weights_;
  RopeTable rope_;
  std::unique_ptr<AtenBackend> backend_;
};

void ExpectNear(const std::vector<float>& got, const at::Tensor& expected, const char* what) {
  const std::vector<float> want = ToFloats(expected.detach());
  ASSERT_EQ(got.size(), want.size()) << what;
  const double size = expected.detach().abs().max().item<double>();
  EXPECT_GT(size, 0) << what;
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 2e-5 * (1 + size)) << what << " " << i;
}

// Two sequences in chunks and steps, in scattered slots, of which one's last rows are overridden.
TEST_P(AtenBackendModel, StepsGiveThePlainSequencesLogits) {
  const std::vector<int64_t> first = {3, 1, 4, 1, 5, 9, 2}, second = {6, 5, 3};
  const std::vector<int32_t> blocks_of_first = BlocksOf({{20, 2}, {5, 3}, {12, 9}}), blocks_of_second = {0, 1, 2};
  const KvBlocks of_first{{}, 0, blocks_of_first}, of_second{{}, 0, blocks_of_second};
  const at::Tensor values = at::randn({kLayers - kEntry, kExperts});
  backend_->AllocateKvCache(SlotsOf(32));
  PlacedOverride placed{Kind::kLogitShift, {}, backend_->Allocate(ElementType::kFloat32, kLayers - kEntry, kExperts)};
  for (int l = kEntry; l < kLayers; ++l) placed.layers.push_back(l);
  backend_->Write(ToFloats(values), placed.values.view());
  EXPECT_EQ(backend_->kv_cache_bytes(), 32 * kLayers * 2 * 16 * 4);
  struct Step {
    std::vector<SequenceRows> sequences;
    std::vector<int64_t> tokens;
  };
  const Step steps[] = {{{{0, 5, 0, of_first}, {5, 2, 0, of_second}}, {3, 1, 4, 1, 5, 6, 5}},
                        {{{0, 1, 5, of_first}, {1, 1, 2, of_second}}, {9, 3}},
                        {{{0, 1, 6, of_first}}, {2}}};
  std::vector<OwnedMatrix> logits;
  for (const Step& step : steps) {
    const auto rows = static_cast<int64_t>(step.tokens.size());
    const OwnedMatrix hidden = Hidden(step.tokens);
    logits.push_back(backend_->Allocate(ElementType::kFloat32, rows, config_.vocabulary_size));
    std::vector<int64_t> all(static_cast<size_t>(rows));
    std::iota(all.begin(), all.end(), 0);
    // Of the first sequence's positions from 4 on.
    const OverriddenRows overridden{step.sequences[0].rows - 1, step.sequences[0].rows, &placed};
    backend_->PlaceStep({step.sequences, step.tokens, {&overridden, 1}, true, all, {}});
    backend_->RunStep({0, rows, rows, 0, true}, [&] {
      for (int l = 0; l < kLayers; ++l) {
        const OwnedMatrix probabilities = backend_->Allocate(ElementType::kFloat32, rows, kExperts);
        backend_->Attention(l, hidden.view());
        backend_->FeedForward(l, hidden.view(), probabilities.view());
        for (int64_t r = 0; r < rows; ++r) {
          double sum = 0;
          for (float p : ReadAll(probabilities.Rows(r, 1))) sum += p;
          EXPECT_NEAR(sum, 1, 1e-5);
        }
      }
      backend_->Logits(hidden.view(), logits.back().view());
    });
  }
  const at::Tensor plain = PlainLogits(PlainSequence(first, 4, Kind::kLogitShift, values));
  const at::Tensor other = PlainLogits(PlainSequence(second, 0, Kind::kLogitShift, {}));
  ExpectNear(ReadAll(logits[0].Rows(0, 5)), plain.narrow(0, 0, 5), "chunk");
  ExpectNear(ReadAll(logits[0].Rows(5, 2)), other.narrow(0, 0, 2), "other chunk");
  ExpectNear(ReadAll(logits[1].Rows(0, 1)), plain.narrow(0, 5, 1), "step");
  ExpectNear(ReadAll(logits[1].Rows(1, 1)), other.narrow(0, 2, 1), "other step");
  ExpectNear(ReadAll(logits[2]), plain.narrow(0, 6, 1), "last step");

  const auto likeliest = static_cast<int32_t>(plain[0].argmax().item<int64_t>());
  const std::vector<int32_t> targets = {likeliest, (static_cast<int32_t>(plain[1].argmax().item<int64_t>()) + 1) % 13};
  const OwnedMatrix scores = backend_->Allocate(ElementType::kFloat32, 2, 2);
  const std::vector<int64_t> head_rows = {0, 1};
  backend_->PlaceStep({steps[0].sequences, {}, {}, false, head_rows, targets});
  backend_->ScoreTargets(logits[0].view().Rows(0, 2), scores.view());
  const at::Tensor logp = at::log_softmax(plain, -1);
  ExpectNear(ReadAll(scores), at::stack({logp[0][targets[0]], at::ones({}), logp[1][targets[1]], at::zeros({})}),
             "scores");
}

// Values that replace or shift the routers of all trees' rows but the last tree's, as two sums: of the first tree's,
// and of the second's.
TEST_P(AtenBackendModel, ObjectivesGradientIsAutogradsOverPlainSequences) {
  const std::vector<Neighbor> neighbors = Neighbors();
  std::vector<OwnedMatrix> entries;
  std::vector<TreeCase> cases;
  for (const Neighbor& neighbor : neighbors) cases.push_back(Prepare(neighbor, entries));
  // The first two are one objective, the third is another: packed together above the entry.
  const auto pair = backend_->PackTrees(absl::MakeConstSpan(cases).subspan(0, 2));
  const auto single = backend_->PackTrees(absl::MakeConstSpan(cases).subspan(2, 1));
  const OwnedMatrix entry = backend_->AllocateHidden(7);
  backend_->Copy(entries[0].view(), entry.view().Rows(0, 4));
  backend_->Copy(entries[1].view(), entry.view().Rows(4, 2));
  backend_->Copy(entries[2].view(), entry.view().Rows(6, 1));

  std::vector<int64_t> rows, tokens;
  std::vector<float> dlogprobs;
  for (size_t i = 0, first = 0; i < 2; first += neighbors[i++].tree.size()) {
    for (const auto& target : neighbors[i].targets) {
      rows.push_back(static_cast<int64_t>(first) + target[0]);
      tokens.push_back(target[1]);
    }
  }
  const auto of_pair = backend_->NewTargets(6, rows, tokens, false);
  const auto of_single = backend_->NewTargets(1, {0}, {5}, false);
  for (int t = 0; t < 7; ++t) dlogprobs.push_back(0.5f + 0.25f * static_cast<float>(t % 3));

  for (const Kind kind : {Kind::kWeights, Kind::kLogitShift}) {
    SCOPED_TRACE(kind == Kind::kWeights ? "weights" : "shift");
    at::Tensor values[2];  // of the first and second neighbor
    for (at::Tensor& own : values) {
      own = at::randn({kLayers - kEntry, kExperts});
      if (kind == Kind::kWeights) own = at::softmax(own, -1);
    }
    // A sum of several ranges; rows of the third tree are the model's own.
    const auto routing = [&](int l) {
      const auto row = [&](int i) {
        return absl::MakeConstSpan(values[i].const_data_ptr<float>() + (l - kEntry) * kExperts, kExperts);
      };
      return std::vector<RoutingRows>{{0, 1, kind, row(0), 1}, {1, 4, kind, row(0), 1}, {4, 6, kind, row(1), 0}};
    };
    const auto bottom = routing(kEntry), top = routing(kEntry + 1);
    const auto only_pair = absl::MakeConstSpan(bottom);

    const OwnedMatrix attended_pair = backend_->TreeAttention(kEntry, {pair.get()}, entry.Rows(0, 6), nullptr);
    const OwnedMatrix attended_single = backend_->TreeAttention(kEntry, {single.get()}, entry.Rows(6, 1), nullptr);
    const auto remembered = backend_->Remember(kEntry, attended_pair, GetParam().remembered_bytes);
    const auto other = backend_->Remember(kEntry, attended_single, GetParam().remembered_bytes);
    std::unique_ptr<Tape> first_tape, attention_tape, networks_tape, head_tape;
    backend_->RunRemembered(*remembered, {}, nullptr);  // Another run before: some experts are known.
    const OwnedMatrix low = backend_->RunRemembered(*remembered, only_pair, &first_tape);
    const OwnedMatrix low_single = backend_->RunRemembered(*other, {}, nullptr);
    const OwnedMatrix joined = backend_->AllocateHidden(7);
    backend_->Copy(low.view(), joined.view().Rows(0, 6));
    backend_->Copy(low_single.view(), joined.view().Rows(6, 1));
    const std::vector<const PackedTrees*> trees = {pair.get(), single.get()};
    const OwnedMatrix middle = backend_->TreeAttention(2, trees, joined, &attention_tape);
    const OwnedMatrix hidden = backend_->FeedForward(2, top, middle, &networks_tape);
    const std::vector<const TargetTokens*> targets = {of_pair.get(), of_single.get()};
    const OwnedMatrix logprobs = backend_->TargetLogprobs(targets, hidden, &head_tape);

    const OwnedMatrix sums = backend_->Allocate(ElementType::kFloat32, 4, kExperts);
    const OwnedMatrix dhidden = backend_->TargetLogprobsBackward(targets, *head_tape, dlogprobs);
    const OwnedMatrix dmiddle = backend_->FeedForwardBackward(2, top, *networks_tape, dhidden, sums.view().Rows(2, 2));
    const OwnedMatrix dlow = backend_->TreeAttentionBackward(2, trees, *attention_tape, dmiddle);
    backend_->RememberedBackward(*remembered, only_pair, *first_tape, dlow.Rows(0, 6), sums.view().Rows(0, 2));

    for (at::Tensor& own : values) own.set_requires_grad(true);
    std::vector<at::Tensor> expected;
    for (size_t i = 0; i < neighbors.size(); ++i) {
      const Neighbor& neighbor = neighbors[i];
      for (const auto& target : neighbor.targets) {
        std::vector<int64_t> chain;  // to the target's row
        for (auto r = static_cast<int>(target[0]); r >= 0; r = neighbor.parents[static_cast<size_t>(r)]) {
          chain.insert(chain.begin(), neighbor.tree[static_cast<size_t>(r)]);
        }
        chain.insert(chain.begin(), neighbor.prompt.begin(), neighbor.prompt.end());
        const at::Tensor x =
            PlainSequence(chain, static_cast<int64_t>(neighbor.prompt.size()), kind, i < 2 ? values[i] : at::Tensor());
        expected.push_back(at::log_softmax(PlainLogits(x)[-1], -1)[target[1]]);
      }
    }
    const at::Tensor all = at::stack(expected);
    (all * at::tensor(at::ArrayRef<float>(dlogprobs))).sum().backward();
    ExpectNear(ReadAll(logprobs), all, "log-probabilities");
    for (int l = 0; l < 2; ++l) {
      for (int i = 0; i < 2; ++i) {
        at::Tensor gradient = values[i].grad()[l];
        ExpectNear(ReadAll(sums.Rows(2 * l + 1 - i, 1)), gradient, i == 0 ? "first" : "second");
      }
    }
  }
}

// The softmax over the targets alone.
TEST_P(AtenBackendModel, TargetsOnlyLeaveTheOtherTokensOut) {
  const OwnedMatrix hidden = Hidden({4, 7});
  const auto whole = backend_->NewTargets(1, {0}, {3}, false);
  const auto alone = backend_->NewTargets(1, {0, 0, 0}, {9, 2, 9}, true);
  std::unique_ptr<Tape> tape;
  const std::vector<const TargetTokens*> targets = {whole.get(), alone.get()};
  const OwnedMatrix logprobs = backend_->TargetLogprobs(targets, hidden, &tape);
  const OwnedMatrix dhidden = backend_->TargetLogprobsBackward(targets, *tape, {1.0f, 0.5f, -1.0f, 0.25f});

  const at::Tensor x = at::from_blob(hidden.view().data, {2, 16}, at::kFloat).clone().set_requires_grad(true);
  const at::Tensor logits = PlainLogits(x);
  const at::Tensor read = at::log_softmax(logits[1].index_select(0, at::tensor({2, 9}, at::kLong)), -1);
  const at::Tensor expected = at::stack({at::log_softmax(logits[0], -1)[3], read[1], read[0], read[1]});
  (expected * at::tensor({1.0f, 0.5f, -1.0f, 0.25f})).sum().backward();
  ExpectNear(ReadAll(logprobs), expected, "log-probabilities");
  ExpectNear(ReadAll(dhidden), x.grad(), "gradient");
}

// As a CPU's model has its weights: matrices in bfloat16, whether they are stored so or rounded when they are packed.
TEST_P(AtenBackendModel, WeightsThatWerePackedGiveTheSameBits) {
  const std::vector<int64_t> tokens = {3, 1, 4, 1, 5};
  const std::vector<int32_t> blocks = BlocksOf({{0, 5}});
  MoeWeights rounded = weights_;
  for (at::Tensor* w : {&rounded.embedding, &rounded.lm_head}) *w = w->to(at::kBFloat16);
  const auto round_norm = [](at::Tensor& w) { w = w.to(at::kBFloat16).to(at::kFloat); };
  round_norm(rounded.final_norm);
  for (LayerWeights& layer : rounded.layers) {
    for (at::Tensor* w : {&layer.qkv, &layer.output, &layer.experts.gate_up, &layer.experts.down, &layer.shared.gate_up,
                          &layer.shared.down, &layer.shared_gate, &layer.router}) {
      *w = w->to(at::kBFloat16);
    }
    for (at::Tensor* w : {&layer.attention_norm, &layer.moe_norm}) round_norm(*w);
  }
  std::vector<std::vector<float>> logits;
  for (const MoeWeights& weights : {rounded, PackWeights(config_, ViewsOf(rounded), at::kCPU, at::kBFloat16),
                                    PackWeights(config_, ViewsOf(weights_), at::kCPU, at::kBFloat16)}) {
    backend_ = std::make_unique<AtenBackend>(config_, weights, rope_);
    EXPECT_EQ(backend_->info().weights, ElementType::kBfloat16);
    backend_->AllocateKvCache(SlotsOf(8));
    const OwnedMatrix hidden = Hidden(tokens);
    const OwnedMatrix last = backend_->Allocate(ElementType::kFloat32, 1, config_.vocabulary_size);
    const std::vector<SequenceRows> rows = {{0, 5, 0, {{}, 0, blocks}}};
    const std::vector<int64_t> head_rows = {4};
    backend_->PlaceStep({rows, tokens, {}, false, head_rows, {}});
    for (int l = 0; l < kLayers; ++l) {
      backend_->Attention(l, hidden.view());
      backend_->FeedForward(l, hidden.view(), {});
    }
    backend_->Logits(hidden.view(), last.view());
    logits.push_back(ReadAll(last));
  }
  for (const std::vector<float>& one : logits) EXPECT_EQ(one, logits[0]);
}

INSTANTIATE_TEST_SUITE_P(Shapes, AtenBackendModel,
                         testing::Values(Case{"Normalized", true, 2, 1, 1 << 20}, Case{"Plain", false, 2, 1, 0},
                                         Case{"AllExperts", false, kExperts, 1, 0},
                                         Case{"Scaled", false, 3, 0.5, 1 << 20}),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace c3po::aten
