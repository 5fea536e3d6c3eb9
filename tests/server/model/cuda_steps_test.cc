// Whole steps of tiny models of every family by the GPU's kernels and their plan, on the host model of a GPU: what they
// give, and what they ask of the device.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "index/base/device_failure.h"
#include "server/compute/cache_fit.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/tiny_on_cuda.h"

namespace c3po {
namespace {

using host_cuda::HostRuntime;
using host_cuda::RuntimeCounts;

class CudaSteps : public testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<MoeModel> OnCuda(const ModelConfig& config, ElementType type = ElementType::kFloat32) {
    auto model = MoeModel::OnBackend(config, TinyOnCuda(GetParam(), config, runtime_, type), int64_t{1} << 20);
    EXPECT_TRUE(model->AllocateKvCache(SlotsOf(256)).ok());
    return model;
  }

  HostRuntime runtime_;
};

// As a share of one and the largest number.
double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = a.size() == b.size() ? 0 : 1e9, size = 1;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    largest = std::max(largest, std::isfinite(a[i]) ? std::abs(double{a[i]} - b[i]) : 1e9);
    size = std::max(size, 1 + std::abs(double{b[i]}));
  }
  return largest / size;
}

std::shared_ptr<const RoutingOverride> SomeRouting(std::mt19937& rng, int experts, RoutingOverride::Kind kind) {
  RoutingOverride routing{kind, {1, 2}, RandomPathway(rng, 2, experts)};
  return std::make_shared<const RoutingOverride>(std::move(routing));
}

// Prompts, prompts in two chunks, decode steps of one to three sequences, mixed steps, scores, captures, overrides that
// come and go: each as the CPU computes it.
TEST_P(CudaSteps, GiveWhatTheCpuGives) {
  const std::unique_ptr<MoeModel> cpu = LoadTiny(GetParam());
  const std::unique_ptr<MoeModel> gpu = OnCuda(cpu->config());
  const int vocabulary = cpu->shape().vocabulary_size, experts = cpu->shape().experts;
  std::mt19937 rng(1);
  const auto expect_same = [&](const std::vector<OwnedSegment>& segments, const char* what) {
    const auto got = RunSegments(*gpu, segments), expected = RunSegments(*cpu, segments);
    ASSERT_TRUE(got.ok()) << what << ": " << got.status();
    ASSERT_TRUE(expected.ok()) << what << ": " << expected.status();
    for (size_t i = 0; i < segments.size(); ++i) {
      const SegmentOutput &a = (*got)[i], &b = (*expected)[i];
      EXPECT_LE(LargestDifference(a.readout.logits, b.readout.logits), 5e-5) << what << " " << i;
      EXPECT_LE(LargestDifference(a.target_logprobs, b.target_logprobs), 1e-4) << what << " " << i;
      EXPECT_LE(LargestDifference(a.capture.pathway.weights, b.capture.pathway.weights), 1e-5) << what << " " << i;
      EXPECT_LE(LargestDifference(a.capture.mean_hidden, b.capture.mean_hidden), 1e-4) << what << " " << i;
    }
  };
  std::vector<int> lengths = {3, 70, 6};  // One is more than a step of decoding may have rows.
  const std::vector<std::vector<KvRun>> runs = {{{0, 60}}, {{60, 110}}, {{170, 60}}};
  for (int i = 0; i < 3; ++i) {
    OwnedSegment prompt =
        PromptSegment(runs[static_cast<size_t>(i)], RandomTokens(rng, lengths[static_cast<size_t>(i)], vocabulary));
    prompt.want_capture = i == 1;
    prompt.mean_layer = i == 1 ? 1 : -1;
    if (i == 2) prompt.targets = RandomTokens(rng, lengths[2], vocabulary);
    if (i == 0) prompt.routing = SomeRouting(rng, experts, RoutingOverride::Kind::kWeights);
    expect_same({prompt}, "prompt");
  }
  OwnedSegment chunk = PromptSegment(runs[1], RandomTokens(rng, 7, vocabulary), lengths[1]);
  lengths[1] += 7;
  expect_same({chunk}, "chunk");
  for (int step = 0; step < 8; ++step) {
    std::vector<OwnedSegment> segments;
    for (int i = 0; i < 3; ++i) {
      if (i == step % 4) continue;
      segments.push_back(PromptSegment(runs[static_cast<size_t>(i)], RandomTokens(rng, 1, vocabulary),
                                       lengths[static_cast<size_t>(i)]++));
      if ((step + i) % 3 == 0) segments.back().routing = SomeRouting(rng, experts, RoutingOverride::Kind::kLogitShift);
    }
    if (step == 5) segments.push_back(PromptSegment({{230, 20}}, RandomTokens(rng, 5, vocabulary)));
    expect_same(segments, step == 5 ? "mixed" : "decode");
  }
}

// A prompt of 70 tokens in one step, and in three chunks beside other sequences; then decode steps, alone and in a
// batch, recorded and replayed.
TEST_P(CudaSteps, GiveARowTheSameBitsAloneAndInAnyBatch) {
  const std::unique_ptr<MoeModel> cpu = LoadTiny(GetParam());
  const int vocabulary = cpu->shape().vocabulary_size;
  const std::unique_ptr<MoeModel> alone = OnCuda(cpu->config(), ElementType::kBfloat16);
  const std::unique_ptr<MoeModel> batched = OnCuda(cpu->config(), ElementType::kBfloat16);
  EXPECT_TRUE(alone->shape().batch_invariant);
  std::mt19937 rng(2), others(3);
  const std::vector<KvRun> own = {{60, 100}}, elsewhere = {{100, 100}}, other = {{0, 60}};
  const std::vector<int32_t> prompt = RandomTokens(rng, 70, vocabulary);
  const auto expected = RunSegments(*alone, {PromptSegment(own, prompt)});
  ASSERT_TRUE(expected.ok()) << expected.status();
  int other_length = 0;
  const auto beside = [&](OwnedSegment segment) {
    OwnedSegment noise = PromptSegment(other, RandomTokens(others, 1 + other_length % 3, vocabulary), other_length);
    other_length += static_cast<int>(noise.tokens.size());
    return RunSegments(*batched, {noise, std::move(segment)});
  };
  absl::StatusOr<std::vector<SegmentOutput>> got;
  for (const auto& [begin, end] : {std::pair(0, 3), {3, 68}, {68, 70}}) {
    got = beside(PromptSegment(elsewhere, {prompt.begin() + begin, prompt.begin() + end}, begin));
    ASSERT_TRUE(got.ok()) << got.status();
  }
  EXPECT_EQ((*got)[1].readout.logits, (*expected)[0].readout.logits);
  for (int length = 70; length < 76; ++length) {
    const std::vector<int32_t> token = RandomTokens(rng, 1, vocabulary);
    const auto one = RunSegments(*alone, {PromptSegment(own, token, length)});
    const auto two = beside(PromptSegment(elsewhere, token, length));
    ASSERT_TRUE(one.ok() && two.ok());
    EXPECT_EQ((*two)[1].readout.logits, (*one)[0].readout.logits) << length;
  }
}

// In bfloat16 the GPU rounds what enters a product, which the CPU does not: blocks differ by that rounding alone, there
// and back. Routers see the same rows, so no choice of experts differs.
TEST_P(CudaSteps, BlocksInBfloat16DifferByTheRoundingOfActivations) {
  constexpr int64_t kRows = 7;
  const std::unique_ptr<MoeModel> cpu = LoadTiny(GetParam(), "bfloat16");
  const std::unique_ptr<MoeModel> gpu = OnCuda(cpu->config(), ElementType::kBfloat16);
  const ModelConfig& config = cpu->config();
  const int64_t d = config.hidden_size;
  std::mt19937 rng(5);
  std::normal_distribution<float> normal;
  const auto random = [&](int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(rng);
    return values;
  };
  const std::vector<float> x = random(kRows * d), dout = random(kRows * d), shift = random(config.experts);
  const std::vector<int> parents = {-1, 0, 1, 1, 3, 0, 5}, depths = {0, 1, 2, 2, 3, 1, 2};
  const TreeShape tree{parents, depths, 0};
  for (int l = 0; l < config.layers; ++l) {
    const std::vector<RoutingRows> routing =
        config.IsMoeLayer(l) ? std::vector<RoutingRows>{{1, 5, RoutingOverride::Kind::kLogitShift, shift, 0}}
                             : std::vector<RoutingRows>();
    std::vector<std::vector<float>> of_cpu;
    for (MoeModel* model : {cpu.get(), gpu.get()}) {
      Backend& backend = model->backend();
      const auto matrix = [&](const std::vector<float>& values, int64_t columns) {
        const OwnedMatrix made =
            backend.Allocate(ElementType::kFloat32, static_cast<int64_t>(values.size()) / columns, columns);
        backend.Write(values, made.view());
        return made;
      };
      std::vector<std::vector<float>> results;
      const auto keep = [&](const OwnedMatrix& made) {
        results.emplace_back(static_cast<size_t>(made.rows() * made.view().columns));
        backend.Read(made.view(), absl::MakeSpan(results.back()));
      };
      std::unique_ptr<Tape> tape;
      const OwnedMatrix sums = matrix(std::vector<float>(shift.size()), config.experts);
      keep(backend.FeedForward(l, routing, matrix(x, d), &tape));
      keep(backend.FeedForwardBackward(l, routing, *tape, matrix(dout, d), sums.view()));
      keep(sums);
      const auto states = backend.NewReferenceStates(0, 0, 1, [](int64_t) { return false; });
      const auto packed = backend.PackTrees({{{tree, states}}});
      const PackedTrees* const trees[] = {packed.get()};
      keep(backend.TreeAttention(l, trees, matrix(x, d), &tape));
      keep(backend.TreeAttentionBackward(l, trees, *tape, matrix(dout, d)));
      if (model == cpu.get()) {
        of_cpu = std::move(results);
        continue;
      }
      for (size_t i = 0; i < results.size(); ++i) {
        float size = 0;
        for (const float value : of_cpu[i]) size = std::max(size, std::abs(value));
        for (size_t j = 0; j < results[i].size(); ++j) {
          ASSERT_NEAR(results[i][j], of_cpu[i][j], 2e-2 * size) << "layer " << l << ", result " << i;
        }
      }
    }
  }
}

// A steady decode step: what goes in is one copy, the rest one launch of what was recorded, and one copy out that is
// waited for. Nothing is allocated, no copy is pageable.
TEST_P(CudaSteps, OfDecodingAreOneCopyOneLaunchAndOneWait) {
  const std::unique_ptr<MoeModel> cpu = LoadTiny(GetParam());
  const ModelConfig& config = cpu->config();
  const std::unique_ptr<MoeModel> gpu = OnCuda(config, ElementType::kBfloat16);
  std::mt19937 rng(1);
  int length = 4;
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(
        RunSegments(*gpu, {PromptSegment({{80 * i, 80}}, RandomTokens(rng, length, config.vocabulary_size))}).ok());
  }
  const auto step = [&] {
    std::vector<OwnedSegment> segments;
    for (int i = 0; i < 2; ++i) {
      segments.push_back(PromptSegment({{80 * i, 80}}, RandomTokens(rng, 1, config.vocabulary_size), length));
    }
    ++length;
    ASSERT_TRUE(RunSegments(*gpu, segments).ok());
  };
  for (int warm = 0; warm < 4; ++warm) step();
  const RuntimeCounts before = runtime_.counts();
  step();
  const RuntimeCounts one = runtime_.counts() - before;
  EXPECT_EQ(one.kernels, 0);
  EXPECT_EQ(one.graph_launches, 1);
  EXPECT_EQ(one.copies_to_device, 1);
  EXPECT_LE(one.copies_to_host, 2);  // The test reads whole logits, row by row.
  EXPECT_EQ(one.waits, 1);
  EXPECT_EQ(one.device_waits, 0);
  EXPECT_EQ(one.allocations, 0);
  EXPECT_EQ(one.pageable_copies, 0);
  EXPECT_EQ(one.recordings, 0);
  // Six kernels a layer, two more where keys and values, and queries, are expanded from latents; embedding and head.
  const int expansions = config.latent ? 1 + (config.latent->query_rank > 0 ? 1 : 0) : 0;
  EXPECT_EQ(one.graph_kernels, (6 + expansions) * config.layers + 2);
}

// A device that fails in the middle of a step: that step's requests fail, and so does each one after it. None is given
// numbers.
TEST(CudaFailure, FailsTheStepAndAllThatCome) {
  const std::unique_ptr<MoeModel> cpu = LoadTiny("olmoe_tiny");
  HostRuntime runtime;
  const auto gpu =
      MoeModel::OnBackend(cpu->config(), TinyOnCuda("olmoe_tiny", cpu->config(), runtime), int64_t{1} << 20);
  ASSERT_TRUE(gpu->AllocateKvCache(SlotsOf(64)).ok());
  std::mt19937 rng(1);
  const auto step = [&](int start) {
    return RunSegments(*gpu, {PromptSegment({{0, 64}}, RandomTokens(rng, 1, cpu->shape().vocabulary_size), start)});
  };
  for (int start = 0; start < 4; ++start) ASSERT_TRUE(step(start).ok());
  EXPECT_TRUE(DeviceFailure().ok());
  runtime.BreakAfter(7);
  for (int start = 4; start < 7; ++start) {
    const absl::Status status = step(start).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("the device failed: "));
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("unspecified launch failure"));
  }
  EXPECT_FALSE(gpu->PrepareNeighbor({"a", {1, 2, 3}, {{4, 5}}, 0, 1}, MovingPart()).ok());
  EXPECT_EQ(DeviceFailure().code(), absl::StatusCode::kUnavailable);
  ForgetDeviceFailure();
}

// The cache takes what the device has left of the server's share beside each part, and the device gives as much.
TEST(CudaMemory, IsFilledByTheCache) {
  const std::unique_ptr<MoeModel> cpu = LoadTiny("olmoe_tiny");
  HostRuntime runtime(HostRuntime::Options{.memory_bytes = int64_t{64} << 20});
  const auto gpu =
      MoeModel::OnBackend(cpu->config(), TinyOnCuda("olmoe_tiny", cpu->config(), runtime), int64_t{1} << 20);
  CacheSettings settings;
  settings.block_positions = 32;
  settings.context_window = cpu->config().context_window;
  settings.reference_bytes = int64_t{1} << 20;
  settings.work_bytes = int64_t{4} << 20;
  const absl::StatusOr<CachePlan> plan = PlanCache(gpu->backend(), settings);
  ASSERT_TRUE(plan.ok()) << plan.status();
  ASSERT_TRUE(plan->device.has_value());
  const int64_t bytes = gpu->backend().KvCacheBytes({plan->positions / 32, 32});
  EXPECT_GT(bytes, int64_t{40} << 20);
  EXPECT_LT(bytes, int64_t{58} << 20);
  EXPECT_EQ(plan->device->kv_cache, bytes);
  EXPECT_LE(plan->device->all(), plan->device->limit_bytes());
  EXPECT_TRUE(gpu->AllocateKvCache({plan->positions / 32, 32}).ok());
  EXPECT_EQ(gpu->kv_cache_bytes(), bytes);
  CacheSettings too_little = settings;
  too_little.fraction = 0.1;
  EXPECT_THAT(std::string(PlanCache(gpu->backend(), too_little).status().message()),
              testing::AllOf(testing::HasSubstr("weights 0.00 GB"), testing::HasSubstr("gpu-memory-fraction"),
                             testing::HasSubstr("reference states ("), testing::HasSubstr("work space ("),
                             testing::HasSubstr("what else is there now")));
  EXPECT_EQ(PlanCache(cpu->backend(), settings)->positions, 32768);
  EXPECT_FALSE(PlanCache(cpu->backend(), settings)->device.has_value());
}

INSTANTIATE_TEST_SUITE_P(Families, CudaSteps,
                         testing::Values("olmoe_tiny", "mixtral_tiny", "mixtral_dense_tiny", "qwen2_moe_tiny",
                                         "qwen3_moe_tiny", "deepseek_tiny", "deepseek_v2_lite_tiny", "deepseek_v2_tiny",
                                         "granite_moe_tiny"));

}  // namespace
}  // namespace c3po
