// What the CPU's blocks take of the system's memory, seen by this program's own operator new: a decode step like the
// one before it takes none, and where there is none a pass fails alone.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "server/compute/cpu/memory.h"
#include "server/compute/device.h"
#include "tests/server/model/neighbor_scenario.h"

namespace {

std::atomic<int64_t> allocations{0};
// Of memory for rows, which is aligned: so many more, and then there is none until it is set anew.
constexpr int64_t kPlenty = int64_t{1} << 60;
std::atomic<int64_t> aligned_left{kPlenty};

void* Allocate(std::size_t size, std::size_t alignment) {
  ++allocations;
  // A multiple of the alignment, as aligned_alloc wants it.
  void* const memory = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void* operator new(std::size_t size) { return Allocate(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  if (--aligned_left < 0) throw std::bad_alloc();
  return Allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace c3po {
namespace {

class SteadyStep : public testing::TestWithParam<const char*> {};

// Tokens that are chosen, one under an override, and what a gate asks.
TEST_P(SteadyStep, TakesNoMemory) {
  SetComputeThreads(1);
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  std::mt19937 rng(1);
  RoutingOverride routing{RoutingOverride::Kind::kLogitShift, {1, 2}, RandomPathway(rng, 2, model->shape().experts)};
  const auto placed = *model->PlaceRouting(routing);
  const std::vector<int32_t> blocks[] = {BlocksOf({{0, 20}}), BlocksOf({{20, 20}}), BlocksOf({{40, 20}})};
  const std::vector<int32_t> tokens(20, 7), asked = {3, 4};
  const SamplingParams greedy;
  std::vector<Segment> segments(3);
  std::vector<SegmentOutput> outputs;
  const auto step = [&](int position) {
    for (size_t i = 0; i < 3; ++i) {
      Segment& segment = segments[i];
      segment.kv.blocks = blocks[i];
      segment.start = position;
      segment.tokens = absl::MakeConstSpan(tokens).subspan(static_cast<size_t>(position), 1);
      segment.routing = i == 1 ? placed.get() : nullptr;
      segment.readout.sampling = i == 2 ? nullptr : &greedy;
      segment.readout.distribution = i == 2;
      if (i == 2) segment.readout.tokens = asked;
      segment.readout.position = position;
    }
    const absl::Status status = model->Forward(segments, outputs);
    ASSERT_TRUE(status.ok()) << status;
  };
  // What a thread keeps for attention grows with the longest sequence that it has seen.
  for (int position = 0; position < 20; ++position) step(position);
  const int64_t before = allocations;
  EXPECT_GT(before, 0);
  for (int position = 16; position < 20; ++position) step(position);
  EXPECT_EQ(allocations - before, 0);
}

// A scope also ends because memory was short.
TEST(Arena, EndsAScopeWithoutMemoryForTheNext) {
  cpu::Arena arena;
  aligned_left = 2;
  {
    const cpu::Arena::Scope scope(arena);
    arena.Take(2 << 20);
    arena.Take(3 << 20);
    EXPECT_THROW(arena.Take(8 << 20), std::bad_alloc);
  }
  EXPECT_EQ(arena.bytes(), 0);
  aligned_left = kPlenty;
  const cpu::Arena::Scope scope(arena);
  EXPECT_NE(arena.Take(8 << 20), nullptr);
}

// Wherever memory ends within it, a pass fails with a status, holds nothing afterwards, and the next one gives what it
// always gave.
TEST_P(SteadyStep, AfterAPassWithoutMemoryGivesWhatItGave) {
  SetComputeThreads(1);
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  std::mt19937 rng(2);
  OwnedSegment prompt = PromptSegment({{0, 40}}, RandomTokens(rng, 40, model->shape().vocabulary_size));
  prompt.want_capture = true;
  const Scenario scenario{GetParam(), ApplicationRule::kRouterShift, SurrogateLoss::kChoices, {1, 2, 3}, false, 2};
  const ObjectiveSpec spec = MakeSpec(rng, *model, scenario);
  const RoutingOverride routing = MakeRouting(rng, *model, scenario);
  const auto objective = *model->NewObjective(spec);
  const std::vector<float> logits = (*RunSegments(*model, {prompt}))[0].readout.logits;
  const LossAndGradient loss = *model->EvaluateTogether({{objective.get(), routing, true}})[0];
  const int64_t held = cpu::HeldMemory::now();
  int failures = 0;
  for (int64_t left = 0, successes = 0; successes < 2; ++left) {
    ASSERT_LT(left, 1000);
    aligned_left = left;
    const absl::Status out = RunSegments(*model, {prompt}).status();  // What it captured is not held.
    aligned_left = left;
    const auto evaluated = model->EvaluateTogether({{objective.get(), routing, true}});
    aligned_left = kPlenty;
    ASSERT_EQ(cpu::HeldMemory::now(), held);
    failures += out.ok() ? 0 : 1;
    failures += evaluated[0].ok() ? 0 : 1;
    if (out.ok() && evaluated[0].ok()) ++successes;
    ASSERT_EQ((*RunSegments(*model, {prompt}))[0].readout.logits, logits);
    const auto again = model->EvaluateTogether({{objective.get(), routing, true}});
    ASSERT_TRUE(again[0].ok()) << again[0].status();
    ASSERT_EQ(again[0]->loss, loss.loss);
    ASSERT_EQ(again[0]->gradient.weights, loss.gradient.weights);
  }
  EXPECT_GT(failures, 10);
}

// Wherever memory ends while a neighbor is prepared, its blocks are back, and the next one finds the pool whole.
TEST_P(SteadyStep, ANeighborWithoutMemoryLeavesThePoolWhole) {
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  Backend& backend = model->backend();
  std::mt19937 rng(3);
  const int vocabulary = model->shape().vocabulary_size;
  const NeighborCase neighbor{"a", RandomTokens(rng, 20, vocabulary), {RandomTokens(rng, 4, vocabulary)}, 0, 1};
  const int64_t held = cpu::HeldMemory::now();
  int failures = 0;
  for (int64_t left = 0; failures < 1000; ++left) {
    aligned_left = left;
    const auto prepared = model->PrepareNeighbor(neighbor, {1});
    aligned_left = kPlenty;
    if (prepared.ok()) {
      EXPECT_FALSE(prepared->hit);
      break;
    }
    ++failures;
    ASSERT_EQ(prepared.status().code(), absl::StatusCode::kInternal) << prepared.status();
    ASSERT_EQ(backend.reference_bytes_in_use(), 0);
    ASSERT_EQ(model->neighbor_cache_bytes(), 0);
    ASSERT_EQ(cpu::HeldMemory::now(), held);
  }
  EXPECT_GT(failures, 1);
  EXPECT_EQ(cpu::HeldMemory::now() - held, backend.reference_bytes_in_use());
  EXPECT_EQ(model->neighbor_cache_bytes(), backend.reference_bytes_in_use());
  EXPECT_TRUE(model->PrepareNeighbor(neighbor, {1})->hit);
}

// Memory for the keys alone is none for a cache, and is not kept.
TEST(KvCache, IsNothingWithoutMemoryForAllOfIt) {
  const std::unique_ptr<MoeModel> model = LoadTiny("olmoe_tiny");
  const int64_t held = cpu::HeldMemory::now(), cache = model->kv_cache_bytes();
  aligned_left = 1;
  EXPECT_EQ(model->AllocateKvCache(SlotsOf(512)).code(), absl::StatusCode::kResourceExhausted);
  aligned_left = kPlenty;
  EXPECT_EQ(model->kv_cache_bytes(), 0);
  EXPECT_EQ(cpu::HeldMemory::now(), held - cache);
  EXPECT_FALSE(RunSegments(*model, {PromptSegment({{0, 3}}, {1, 2, 3})}).ok());
  ASSERT_TRUE(model->AllocateKvCache(SlotsOf(256)).ok());
  EXPECT_TRUE(RunSegments(*model, {PromptSegment({{0, 3}}, {1, 2, 3})}).ok());
}

INSTANTIATE_TEST_SUITE_P(Families, SteadyStep,
                         testing::Values("olmoe_tiny", "mixtral_tiny", "qwen2_moe_tiny", "qwen3_moe_tiny",
                                         "deepseek_tiny", "deepseek_v2_tiny", "granite_moe_tiny"));

}  // namespace
}  // namespace c3po
