// A decode step like the one before it takes no memory from the system: counted by this program's own operator new.

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "server/compute/device.h"
#include "tests/server/model/neighbor_scenario.h"

namespace {

std::atomic<int64_t> allocations{0};

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
  return Allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace c3po {
namespace {

class SteadyStep : public testing::TestWithParam<const char*> {};

TEST_P(SteadyStep, TakesNoMemory) {
  SetComputeThreads(1);  // Which of several takes a part is chance, and so is which has seen one before.
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  Backend& backend = model->backend();
  const KvRun runs[] = {{0, 20}, {20, 20}, {40, 20}};
  std::mt19937 rng(1);
  const Pathway weights = RandomPathway(rng, 1, model->shape().experts);
  const RoutingRows routing{1, 2, RoutingOverride::Kind::kWeights, weights.Row(0), -1};
  const OwnedMatrix hidden = backend.AllocateHidden(3);
  const OwnedMatrix logits = backend.Allocate(ElementType::kFloat32, 3, model->shape().vocabulary_size);
  const auto step = [&](int64_t position) {
    SequenceRows sequences[3];
    for (int64_t i = 0; i < 3; ++i) sequences[i] = {i, 1, position, {&runs[i], 1}};
    const int64_t tokens[] = {1, 2, 3}, rows[] = {0, 1, 2};
    backend.RunStep([&] {
      backend.PlaceRows(sequences);
      backend.Embed(tokens, hidden.view());
      for (int l = 0; l < model->config().layers; ++l) {
        const bool moe = model->config().IsMoeLayer(l);
        backend.Attention(l, hidden.view());
        backend.FeedForward(l, absl::MakeConstSpan(&routing, moe ? 1 : 0), hidden.view(), Matrix());
      }
      backend.Logits(hidden.view(), rows, logits.view());
    });
  };
  // What a thread keeps for attention grows with the longest sequence that it has seen.
  for (int64_t position = 0; position < 20; ++position) step(position);
  const int64_t before = allocations;
  EXPECT_GT(before, 0);
  for (int64_t position = 16; position < 20; ++position) step(position);
  EXPECT_EQ(allocations - before, 0);
}

INSTANTIATE_TEST_SUITE_P(Families, SteadyStep,
                         testing::Values("olmoe_tiny", "mixtral_tiny", "qwen2_moe_tiny", "qwen3_moe_tiny",
                                         "deepseek_tiny", "deepseek_v2_tiny", "granite_moe_tiny"));

}  // namespace
}  // namespace c3po
