// That a step may be recorded once and replayed, as a graph of a device is: on a backend that does so.

#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "tests/server/model/neighbor_scenario.h"
#include "tests/server/model/tiny_on_aten.h"

namespace c3po {
namespace {

// Keeps the blocks that a step of a shape enqueued, with their matrices, and runs them for the next step of that shape
// at the same places without asking what to enqueue.
class RecordingBackend final : public aten::AtenBackend {
 public:
  using AtenBackend::AtenBackend;

  StepMatrices PlaceStep(const StepInputs& inputs) override {
    placed_ = AtenBackend::PlaceStep(inputs);
    return placed_;
  }
  void RunStep(const StepShape& shape, absl::FunctionRef<void()> enqueue) override {
    const Key key{shape.first_layer,
                  shape.rows,
                  shape.head_rows,
                  shape.targets,
                  placed_.hidden.view().data,
                  placed_.probabilities.view().data,
                  placed_.logits.view().data,
                  placed_.scores.view().data};
    const auto known = recorded_.find(key);
    if (!shape.varies && known != recorded_.end()) {
      ++replayed;
      for (const std::function<void()>& block : known->second) block();
      return;
    }
    blocks_.clear();
    AtenBackend::RunStep(shape, enqueue);
    ++enqueued;
    if (!shape.varies) recorded_[key] = std::move(blocks_);
  }
  void Embed(Matrix hidden) override {
    Run([=, this] { AtenBackend::Embed(hidden); });
  }
  void Attention(int layer, Matrix hidden) override {
    Run([=, this] { AtenBackend::Attention(layer, hidden); });
  }
  void FeedForward(int layer, Matrix hidden, Matrix probabilities) override {
    Run([=, this] { AtenBackend::FeedForward(layer, hidden, probabilities); });
  }
  void Logits(const Matrix& hidden, Matrix logits) override {
    Run([=, this] { AtenBackend::Logits(hidden, logits); });
  }
  void ScoreTargets(const Matrix& logits, Matrix scores) override {
    Run([=, this] { AtenBackend::ScoreTargets(logits, scores); });
  }

  int enqueued = 0, replayed = 0;

 private:
  using Key = std::tuple<int, int64_t, int64_t, int64_t, void*, void*, void*, void*>;
  void Run(std::function<void()> block) {
    block();
    blocks_.push_back(std::move(block));
  }

  StepMatrices placed_;
  std::vector<std::function<void()>> blocks_;
  std::map<Key, std::vector<std::function<void()>>> recorded_;
};

class ReplayedStep : public testing::TestWithParam<const char*> {};

// Decode steps of one to three sequences with other tokens at other positions, under overrides that come and go;
// between them prompts, scores and captures.
TEST_P(ReplayedStep, GivesWhatAnEnqueuedOneGives) {
  const std::unique_ptr<MoeModel> kernels = LoadTiny(GetParam());
  auto owned = TinyOnAten<RecordingBackend>(GetParam(), kernels->config());
  RecordingBackend& recording = *owned;
  const auto on = [&](std::unique_ptr<Backend> backend) {
    auto model = MoeModel::OnBackend(kernels->config(), std::move(backend), int64_t{1} << 20);
    EXPECT_TRUE(model->AllocateKvCache(SlotsOf(256)).ok());
    return model;
  };
  const auto replaying = on(std::move(owned));
  const auto plain = on(TinyOnAten(GetParam(), kernels->config()));
  std::mt19937 rng(1);
  const int vocabulary = kernels->shape().vocabulary_size;
  const auto routing = [&] {
    RoutingOverride override{
        RoutingOverride::Kind::kLogitShift, {1, 2}, RandomPathway(rng, 2, kernels->shape().experts)};
    return std::make_shared<const RoutingOverride>(std::move(override));
  };
  const auto expect_same = [&](const std::vector<OwnedSegment>& segments) {
    const auto got = RunSegments(*replaying, segments), expected = RunSegments(*plain, segments);
    ASSERT_TRUE(got.ok()) << got.status();
    ASSERT_TRUE(expected.ok()) << expected.status();
    for (size_t i = 0; i < segments.size(); ++i) {
      EXPECT_EQ((*got)[i].readout.logits, (*expected)[i].readout.logits) << "segment " << i;
      EXPECT_EQ((*got)[i].target_logprobs, (*expected)[i].target_logprobs) << "segment " << i;
      EXPECT_EQ((*got)[i].capture.pathway.weights, (*expected)[i].capture.pathway.weights) << "segment " << i;
    }
  };
  std::vector<int> lengths;
  for (int i = 0; i < 3; ++i) {
    lengths.push_back(3 + 2 * i);
    OwnedSegment prompt = PromptSegment({{64 * i, 64}}, RandomTokens(rng, lengths.back(), vocabulary));
    prompt.want_capture = i == 1;
    if (i == 2) prompt.targets = RandomTokens(rng, lengths.back(), vocabulary);
    expect_same({prompt});
  }
  recording.enqueued = recording.replayed = 0;
  for (int step = 0; step < 30; ++step) {
    std::vector<OwnedSegment> segments;
    for (int i = 0; i < 3; ++i) {
      if (i > 0 && rng() % 2 == 0) continue;
      segments.push_back(
          PromptSegment({{64 * i, 64}}, RandomTokens(rng, 1, vocabulary), lengths[static_cast<size_t>(i)]++));
      if (rng() % 3 == 0) segments.back().routing = routing();
    }
    if (step % 10 == 5) {  // A prompt beside them.
      segments.push_back(PromptSegment({{200, 20}}, RandomTokens(rng, 6, vocabulary)));
      segments.back().want_capture = true;
    }
    expect_same(segments);
  }
  EXPECT_GT(recording.replayed, 15);
  EXPECT_LT(recording.enqueued, 15);
}

INSTANTIATE_TEST_SUITE_P(Families, ReplayedStep, testing::Values("olmoe_tiny", "qwen2_moe_tiny", "deepseek_tiny"));

}  // namespace
}  // namespace c3po
