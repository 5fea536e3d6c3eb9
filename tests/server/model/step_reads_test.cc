// How often a step waits for the device that computes it.

#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "server/sampling/readout.h"
#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/tiny_on_aten.h"

namespace c3po {
namespace {

// libtorch's, which counts how often somebody waits for it.
class CountedReads final : public aten::AtenBackend {
 public:
  using AtenBackend::AtenBackend;
  void Read(const Matrix& from, absl::Span<float> to) override {
    ++reads;
    AtenBackend::Read(from, to);
  }
  int reads = 0;
};

class StepReads : public testing::TestWithParam<const char*> {};

// A pass waits for the device as often for many sequences as for one, and each gets what is its own.
TEST_P(StepReads, EachKindOfResultOnce) {
  const std::unique_ptr<MoeModel> kernels = LoadTiny(GetParam());
  auto owned = TinyOnAten<CountedReads>(GetParam(), kernels->config());
  CountedReads& counted = *owned;
  const auto model = MoeModel::OnBackend(kernels->config(), std::move(owned), int64_t{1} << 20);
  ASSERT_TRUE(model->AllocateKvCache(SlotsOf(256)).ok());
  const int vocabulary = model->shape().vocabulary_size;
  const auto segment = [&](int i) {  // By turns: logits wanted, scored, nothing wanted.
    std::mt19937 rng(static_cast<uint32_t>(i + 1));
    OwnedSegment result = PromptSegment({{16 * i, 16}}, RandomTokens(rng, 2 + i % 4, vocabulary));
    result.want_logits = i % 3 == 0;
    if (i % 3 == 1) result.targets = RandomTokens(rng, 2 + i % 4, vocabulary);
    return result;
  };
  std::vector<OwnedSegment> segments;
  std::vector<SegmentOutput> alone;
  for (int i = 0; i < 9; ++i) {
    segments.push_back(segment(i));
    const auto out = RunSegments(*model, {segments.back()});
    ASSERT_TRUE(out.ok()) << out.status();
    alone.push_back((*out)[0]);
  }
  counted.reads = 0;
  const auto together = RunSegments(*model, segments);
  ASSERT_TRUE(together.ok()) << together.status();
  EXPECT_EQ(counted.reads, 2);
  for (size_t i = 0; i < segments.size(); ++i) {
    const SegmentOutput& own = (*together)[i];
    EXPECT_EQ(own.targets_greedy, alone[i].targets_greedy);
    ASSERT_EQ(own.readout.logits.size(), alone[i].readout.logits.size());
    for (size_t j = 0; j < own.readout.logits.size(); ++j)
      ASSERT_NEAR(own.readout.logits[j], alone[i].readout.logits[j], 1e-4) << i;
    ASSERT_EQ(own.target_logprobs.size(), segments[i].targets.size());
    for (size_t j = 0; j < own.target_logprobs.size(); ++j) {
      ASSERT_NEAR(own.target_logprobs[j], alone[i].target_logprobs[j], 1e-4) << i;
    }
  }
  // One that is scored and wants its last logits, between two that want theirs alone.
  for (OwnedSegment& last : segments) last.want_logits = true;
  const auto all = RunSegments(*model, {segments[0], segments[1], segments[2]});
  ASSERT_TRUE(all.ok()) << all.status();
  for (size_t i = 0; i < 3; ++i) {
    const auto own = RunSegments(*kernels, {segments[i]});
    ASSERT_TRUE(own.ok()) << own.status();
    ASSERT_EQ((*all)[i].readout.logits.size(), (*own)[0].readout.logits.size());
    for (size_t j = 0; j < (*own)[0].readout.logits.size(); ++j) {
      ASSERT_NEAR((*all)[i].readout.logits[j], (*own)[0].readout.logits[j], 1e-4) << i;
    }
  }
}

// Each row's is what it is alone, beside others that want something else or are no numbers.
TEST_P(StepReads, WhatIsReadOutOfARowIsWhatItIsAlone) {
  constexpr int64_t kRows = 20;
  const std::unique_ptr<MoeModel> model = LoadTiny(GetParam());
  const auto aten = TinyOnAten(GetParam(), model->config());
  const int64_t width = model->config().vocabulary_size;
  std::mt19937 rng(1);
  std::vector<float> logits(static_cast<size_t>(kRows * width));
  for (float& logit : logits) logit = std::normal_distribution<float>()(rng);
  logits[static_cast<size_t>(3 * width)] = std::numeric_limits<float>::infinity();
  SamplingParams greedy, drawn;
  greedy.logprobs = 2;
  drawn.temperature = 0.8;
  drawn.top_p = 0.9;
  const std::vector<int32_t> tokens = {0, 5, static_cast<int32_t>(width) - 1};
  std::vector<ReadoutRequest> requests(kRows);
  std::vector<const ReadoutRequest*> asked;
  for (int64_t r = 0; r < kRows; ++r) {
    ReadoutRequest& request = requests[static_cast<size_t>(r)];
    if (r % 4 < 2) request.sampling = r % 4 == 0 ? &greedy : &drawn;
    request.position = r;
    request.distribution = r % 4 == 1 || r % 4 == 2;
    request.tokens = tokens;
    request.logits = r % 4 == 3;
    asked.push_back(&request);
  }
  for (Backend* backend : {&model->backend(), static_cast<Backend*>(aten.get())}) {
    std::vector<Readout> readouts(kRows);
    std::vector<Readout*> to;
    for (Readout& readout : readouts) to.push_back(&readout);
    const OwnedMatrix matrix = backend->Allocate(ElementType::kFloat32, kRows, width);
    backend->Write(logits, matrix.view());
    backend->ReadOut(matrix.view(), asked, to);
    for (int64_t r = 0; r < kRows; ++r) {
      const absl::Span<const float> row(logits.data() + r * width, static_cast<size_t>(width));
      Readout alone;
      ReadOut(row, requests[static_cast<size_t>(r)], alone);
      const Readout& got = readouts[static_cast<size_t>(r)];
      EXPECT_EQ(got.status, alone.status);
      EXPECT_EQ(got.status.ok(), r != 3);
      EXPECT_EQ(got.token.token_id, alone.token.token_id);
      EXPECT_EQ(got.token.top_logprobs.size(), alone.token.top_logprobs.size());
      EXPECT_EQ(got.likeliest, alone.likeliest);
      EXPECT_EQ(got.log_normalizer, alone.log_normalizer);
      EXPECT_EQ(got.token_logits, alone.token_logits);
      EXPECT_EQ(got.logits, alone.logits);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, StepReads, testing::Values("olmoe_tiny", "qwen2_moe_tiny", "deepseek_tiny"));

}  // namespace
}  // namespace c3po
