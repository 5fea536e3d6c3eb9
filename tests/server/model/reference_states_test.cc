// Where the states of references lie: in blocks of a pool, as long as they are, and what goes when there is no room.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "server/compute/aten/aten_backend.h"
#include "server/compute/block_pool.h"
#include "server/compute/cpu/memory.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/tiny_on_aten.h"

namespace c3po {
namespace {

int64_t BlockBytes(const MoeModel& model) { return StateBlockBytes(model.config(), model.backend().info().kv); }

// Of a neighbor whose prompt has `prompt` tokens and whose tree has `tree_rows` rows, of which one is the prompt's.
int64_t StateBlocks(const MoeModel& model, int first_layer, int64_t prompt, int64_t tree_rows) {
  const int64_t upper = model.config().layers - model.config().moe_layers[static_cast<size_t>(first_layer)];
  const BackendInfo& info = model.backend().info();
  return upper * StateBlocksOfLayer(prompt - 1) +
         StateBlocksOfRows(tree_rows, model.config(), info.activations, info.kv);
}

// The golden model of that name with a pool, and a cache, of its own.
std::unique_ptr<MoeModel> WithPool(const std::string& name, const MoeModel& model, int64_t bytes, bool on_aten = false,
                                   ElementType kv = ElementType::kFloat32) {
  std::unique_ptr<Backend> backend;
  if (on_aten) {
    backend = TinyOnAten(name, model.config(), kv);
  } else {
    WeightPlacement placement;
    placement.kv = kv;
    backend = *MakeBackend(model.config(), TinyWeights(name, model.config()), placement);
  }
  return MoeModel::OnBackend(model.config(), std::move(backend), bytes);
}

NeighborCase RandomCase(std::mt19937& rng, const MoeModel& model, int prompt, int answer) {
  const int vocabulary = model.shape().vocabulary_size;
  return {"x", RandomTokens(rng, prompt, vocabulary), {RandomTokens(rng, answer, vocabulary)}, 0, 1};
}

// A neighbor that is prepared at once.
PreparedNeighbor Prepare(MoeModel& model, const NeighborCase& neighbor, const MovingPart& moving) {
  auto prepared = model.PrepareNeighbor(neighbor, moving);
  EXPECT_TRUE(prepared.ok()) << prepared.status();
  return prepared.ok() ? *prepared : PreparedNeighbor();
}

LossAndGradient EvaluateOnce(MoeModel& model, const ObjectiveSpec& spec, const RoutingOverride& routing) {
  const auto objective = model.NewObjective(spec);
  EXPECT_TRUE(objective.ok()) << objective.status();
  auto result = model.EvaluateTogether({{objective->get(), routing, true}})[0];
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

bool DropNothing(int64_t) { return false; }

// Others' states that come and go, so that what is free lies here and there.
std::vector<std::shared_ptr<ReferenceStates>> Fragment(std::mt19937& rng, const MoeModel& model) {
  std::vector<std::shared_ptr<ReferenceStates>> held;
  const auto random = [&rng](int64_t end) { return static_cast<int64_t>(rng() % static_cast<uint32_t>(end)); };
  for (int i = 0; i < 60; ++i) {
    held.push_back(model.backend().NewReferenceStates(static_cast<int>(random(model.config().layers)), random(20),
                                                      1 + random(3), DropNothing));
    if (random(3) > 0 || held.size() > 6) held.erase(held.begin() + random(static_cast<int64_t>(held.size())));
  }
  return held;
}

class ReferenceStatesTest : public testing::TestWithParam<const char*> {};

// On our kernels and on libtorch: in a pool of their own, between the blocks of others, and outside of the pool.
TEST_P(ReferenceStatesTest, ObjectivesAreBitwiseTheSameWhereverTheirStatesLie) {
  const Scenario scenario{GetParam(), ApplicationRule::kEveryNewToken, SurrogateLoss::kChoices, {1, 2, 3}, false, 2};
  const std::unique_ptr<MoeModel> tiny = LoadTiny(GetParam());
  for (const auto& [on_aten, kv] : {std::pair(false, ElementType::kFloat32),
                                    {true, ElementType::kFloat32},
                                    {false, ElementType::kBfloat16},
                                    {true, ElementType::kBfloat16}}) {
    std::unique_ptr<LossAndGradient> expected;
    int64_t needed = 0, outside = 0, in_pool = 0;
    for (uint32_t seed = 0; seed <= 12; ++seed) {
      SCOPED_TRACE(testing::Message() << "seed " << seed << (on_aten ? " on libtorch" : "") << " type "
                                      << static_cast<int>(kv));
      std::mt19937 fragments(seed), rng(3);
      const int64_t beside = BlockBytes(*tiny) * static_cast<int64_t>(fragments() % 60);
      const int64_t pool = seed == 0 ? int64_t{1} << 30 : seed == 1 ? 0 : needed + beside;
      const std::unique_ptr<MoeModel> model = WithPool(GetParam(), *tiny, pool, on_aten, kv);
      std::vector<std::shared_ptr<ReferenceStates>> held;
      if (seed > 0) held = Fragment(fragments, *model);
      const ObjectiveSpec spec = MakeSpec(rng, *model, scenario);
      const LossAndGradient result = EvaluateOnce(*model, spec, MakeRouting(rng, *model, scenario));
      for (const auto& state : spec.states) {
        const ReferenceStates& states = *static_cast<const MoeNeighborState&>(*state).states;
        if (seed == 0) needed += states.bytes();
        ++(states.in_pool() ? in_pool : outside);
      }
      if (!expected) expected = std::make_unique<LossAndGradient>(result);
      EXPECT_EQ(result.loss, expected->loss);
      EXPECT_EQ(result.gradient.weights, expected->gradient.weights);
    }
    EXPECT_GT(in_pool, 3);
    EXPECT_GT(outside, 3);
  }
}

// Rows of trees of several sizes, in the pool and out of it, come back as they are, whatever is kept beside them, and
// in whatever type keys and values are: on our kernels and on libtorch.
TEST_P(ReferenceStatesTest, WhatIsKeptOfATreeIsWhatComesBack) {
  const std::unique_ptr<MoeModel> tiny = LoadTiny(GetParam());
  const int64_t d = tiny->config().hidden_size;
  std::mt19937 rng(8);
  for (const int kind : {0, 1, 2, 3}) {
    for (const int64_t pool : {int64_t{0}, int64_t{1} << 20}) {
      const auto model = WithPool(GetParam(), *tiny, pool, kind % 2 == 1,
                                  kind / 2 == 0 ? ElementType::kFloat32 : ElementType::kBfloat16);
      Backend& backend = model->backend();
      std::vector<std::shared_ptr<ReferenceStates>> all;
      std::vector<std::vector<float>> rows;
      int64_t bytes = 0;
      for (const int64_t tree_rows : {1, 2, 7, 30}) {
        all.push_back(backend.NewReferenceStates(1, 3, tree_rows, DropNothing));
        EXPECT_EQ(all.back()->in_pool(), pool > 0);
        bytes += all.back()->bytes();
        std::vector<float>& values = rows.emplace_back(static_cast<size_t>(tree_rows * d));
        for (float& value : values) value = std::normal_distribution<float>()(rng);
        const OwnedMatrix hidden = backend.AllocateHidden(tree_rows);
        backend.Write(values, hidden.view());
        backend.StoreTree(hidden.view(), *all.back());
      }
      for (size_t i = 0; i < all.size(); ++i) {
        const OwnedMatrix loaded = backend.AllocateHidden(static_cast<int64_t>(rows[i].size()) / d);
        backend.LoadTree(*all[i], loaded.view());
        std::vector<float> values(rows[i].size());
        backend.Read(loaded.view(), absl::MakeSpan(values));
        EXPECT_EQ(values, rows[i]);
        EXPECT_ANY_THROW(backend.LoadTree(*all[i], backend.AllocateHidden(5).view())) << "another tree";
      }
      EXPECT_EQ(backend.reference_bytes_in_use(), pool > 0 ? bytes : 0);
      all.clear();
      EXPECT_EQ(backend.reference_bytes_in_use(), 0);
    }
  }
}

// Each takes blocks for itself, on both backends: 23 prompts of 3 tokens beside one of 49.
TEST_P(ReferenceStatesTest, ShortNeighborsTakeNoRoomForALongOne) {
  const std::unique_ptr<MoeModel> tiny = LoadTiny(GetParam());
  for (const bool on_aten : {false, true}) {
    const auto model = WithPool(GetParam(), *tiny, int64_t{64} << 20, on_aten);
    std::mt19937 rng(5);
    int64_t blocks = 0;
    for (int i = 0; i < 24; ++i) {
      const int prompt = i == 7 ? 49 : 3, answer = i == 9 ? 5 : 1;
      Prepare(*model, RandomCase(rng, *model, prompt, answer), {1});
      blocks += StateBlocks(*model, 1, prompt, answer);
      EXPECT_EQ(model->backend().reference_bytes_in_use(), blocks * BlockBytes(*model));
      EXPECT_EQ(model->neighbor_cache_bytes(), blocks * BlockBytes(*model));
    }
  }
}

// What evaluating the objective of some neighbors takes at most, beside what was there before.
int64_t EvaluationBytes(MoeModel& model, const std::vector<NeighborCase>& cases) {
  ObjectiveSpec spec;
  spec.cases = cases;
  spec.critical_layers = {1, 2, 3};
  spec.rule = ApplicationRule::kRouterShift;
  spec.remembered_bytes_max = 0;
  for (const NeighborCase& neighbor : cases) spec.states.push_back(Prepare(model, neighbor, {1}).state);
  const int64_t before = cpu::HeldMemory::now();
  cpu::HeldMemory::Restart();
  EvaluateOnce(model, spec,
               {RoutingOverride::Kind::kLogitShift, spec.critical_layers, Pathway(3, model.shape().experts)});
  return cpu::HeldMemory::most() - before;
}

// Attention's probabilities too are as many as a row has columns.
TEST_P(ReferenceStatesTest, EvaluatingShortNeighborsTakesNoRoomForALongOne) {
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  std::mt19937 rng(6);
  const NeighborCase long_one = RandomCase(rng, *model, model->shape().context_window - 2, 1);
  std::vector<NeighborCase> shorts, all = {long_one};
  for (int i = 0; i < 40; ++i) all.push_back(shorts.emplace_back(RandomCase(rng, *model, 2, 1)));
  const int64_t of_long = EvaluationBytes(*model, {long_one}), of_short = EvaluationBytes(*model, {shorts[0]});
  const int64_t of_shorts = EvaluationBytes(*model, shorts), together = EvaluationBytes(*model, all);
  RecordProperty("long", std::to_string(of_long));
  RecordProperty("short", std::to_string(of_short));
  RecordProperty("shorts", std::to_string(of_shorts));
  RecordProperty("together", std::to_string(together));
  EXPECT_LE(together, of_long + of_shorts);
}

INSTANTIATE_TEST_SUITE_P(Families, ReferenceStatesTest,
                         testing::Values("olmoe_tiny", "mixtral_dense_tiny", "deepseek_v2_tiny", "granite_moe_tiny"));

// With room for three neighbors of one size.
class NeighborCacheTest : public testing::Test {
 protected:
  void SetUp() override {
    tiny_ = LoadTiny("mixtral_tiny");
    size_ = StateBlocks(*tiny_, 1, 9, 2) * BlockBytes(*tiny_);
    model_ = WithPool("mixtral_tiny", *tiny_, 3 * size_ + BlockBytes(*tiny_));
    for (int i = 0; i < 8; ++i) cases_.push_back(RandomCase(rng_, *model_, 9, 2));
  }
  // Whether it was known.
  bool Hit(size_t i) { return Prepare(*model_, cases_[i], moving_).hit; }

  const MovingPart moving_{1};
  std::mt19937 rng_{1};
  std::unique_ptr<MoeModel> tiny_, model_;
  int64_t size_ = 0;
  std::vector<NeighborCase> cases_;
};

TEST_F(NeighborCacheTest, DropsTheLeastRecentlyUsedFirst) {
  for (const size_t i : {0, 1, 2}) EXPECT_FALSE(Hit(i));
  EXPECT_EQ(model_->neighbor_cache_bytes(), 3 * size_);
  EXPECT_TRUE(Hit(0));
  EXPECT_FALSE(Hit(3));  // In the place of 1.
  EXPECT_EQ(model_->neighbor_cache_bytes(), 3 * size_);
  EXPECT_EQ(model_->backend().reference_bytes_in_use(), 3 * size_);
  for (const size_t i : {2, 0, 3}) EXPECT_TRUE(Hit(i)) << i;
  EXPECT_FALSE(Hit(1));  // In the place of 2.
  EXPECT_FALSE(Hit(2));
}

// A state that somebody holds gives no room: the next one that nobody holds goes.
TEST_F(NeighborCacheTest, StatesInUseStay) {
  ObjectiveSpec spec;
  spec.cases = {cases_[0]};
  spec.critical_layers = {1, 2};
  spec.states = {Prepare(*model_, cases_[0], moving_).state};
  const RoutingOverride routing{
      RoutingOverride::Kind::kWeights, {1, 2}, RandomPathway(rng_, 2, model_->shape().experts)};
  auto objective = *model_->NewObjective(spec);
  const LossAndGradient expected = *model_->EvaluateTogether({{objective.get(), routing, true}})[0];
  spec.states.clear();  // The objective alone holds the blocks now.
  for (size_t i = 1; i < 8; ++i) EXPECT_FALSE(Hit(i));
  const LossAndGradient later = *model_->EvaluateTogether({{objective.get(), routing, true}})[0];
  EXPECT_EQ(later.loss, expected.loss);
  EXPECT_EQ(later.gradient.weights, expected.gradient.weights);
  EXPECT_TRUE(Hit(0));
  EXPECT_TRUE(Hit(7));
  EXPECT_FALSE(Hit(1));
  objective.reset();
  for (size_t i = 2; i < 5; ++i) EXPECT_FALSE(Hit(i));
  EXPECT_FALSE(Hit(0)) << "nobody holds it any more";
}

TEST_F(NeighborCacheTest, WhereAllAreInUseTheNextLiesOutsideAndNothingGoes) {
  std::vector<std::shared_ptr<const NeighborState>> held;
  for (const size_t i : {0, 1, 2}) held.push_back(Prepare(*model_, cases_[i], moving_).state);
  const PreparedNeighbor outside = Prepare(*model_, cases_[3], moving_);
  EXPECT_FALSE(outside.hit);
  EXPECT_FALSE(static_cast<const MoeNeighborState&>(*outside.state).states->in_pool());
  EXPECT_FALSE(Hit(3)) << "it is not kept";
  for (const size_t i : {0, 1, 2}) EXPECT_TRUE(Hit(i));
  EXPECT_EQ(model_->neighbor_cache_bytes(), 3 * size_);
  held.pop_back();
  EXPECT_FALSE(Hit(3));
  EXPECT_TRUE(Hit(3));
}

TEST_F(NeighborCacheTest, ANeighborLargerThanThePoolIsPreparedAndDropsNothing) {
  for (const size_t i : {0, 1, 2}) EXPECT_FALSE(Hit(i));
  const NeighborCase large = RandomCase(rng_, *model_, model_->shape().context_window - 9, 2);
  EXPECT_GT(StateBlocks(*model_, 1, static_cast<int64_t>(large.prompt.size()), 2) * BlockBytes(*model_), 3 * size_);
  for (int i = 0; i < 2; ++i) {
    const PreparedNeighbor prepared = Prepare(*model_, large, moving_);
    EXPECT_FALSE(prepared.hit);
    EXPECT_NE(prepared.state, nullptr);
  }
  for (const size_t i : {0, 1, 2}) EXPECT_TRUE(Hit(i));
}

// One that is given up gives its blocks back, and so does one that another made meanwhile.
TEST_F(NeighborCacheTest, PreparationsThatAreGivenUpOrDoubleGiveTheirBlocksBack) {
  auto first = *model_->NewPreparation(cases_[0], moving_), second = *model_->NewPreparation(cases_[0], moving_);
  EXPECT_FALSE(first->hit() || second->hit());
  EXPECT_FALSE(*first->Advance(1));
  EXPECT_FALSE(*second->Advance(1));
  EXPECT_EQ(model_->backend().reference_bytes_in_use(), 2 * size_);
  EXPECT_EQ(model_->neighbor_cache_bytes(), 0);
  EXPECT_TRUE(*second->Advance(PiecewiseWork::kToTheEnd));
  EXPECT_TRUE(*first->Advance(PiecewiseWork::kToTheEnd));
  EXPECT_EQ(model_->neighbor_cache_bytes(), size_);
  auto given_up = *model_->NewPreparation(cases_[1], moving_);
  EXPECT_FALSE(*given_up->Advance(1));
  first.reset();
  second.reset();
  given_up.reset();
  EXPECT_EQ(model_->backend().reference_bytes_in_use(), size_);
  EXPECT_TRUE(Hit(0));
}

}  // namespace
}  // namespace c3po
