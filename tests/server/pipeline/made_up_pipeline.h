#ifndef C3PO_TESTS_SERVER_PIPELINE_MADE_UP_PIPELINE_H_
#define C3PO_TESTS_SERVER_PIPELINE_MADE_UP_PIPELINE_H_

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "server/pipeline/generation_pipeline.h"
#include "server/sampling/readout.h"
#include "tests/index/store/random_reference.h"
#include "tests/server/partial_model.h"
#include "tests/server/text/golden_case.h"

namespace c3po {

// Gives no numbers, but for the fault that is set; equal numbers if `answers`.
class MadeUpModel final : public PartialModel {
 public:
  explicit MadeUpModel(int vocabulary) {
    shape_.digest = kModelDigest;
    shape_.vocabulary_size = vocabulary;
    shape_.layers = shape_.moe_layers = 3;
    shape_.experts = 4;
    shape_.hidden_size = 8;
    shape_.context_window = 4096;
  }
  absl::Status Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) override {
    if (on_forward) on_forward();
    if (broken.load()) return absl::InternalError("the device is gone");
    outputs.assign(segments.size(), {});
    for (size_t i = 0; i < segments.size(); ++i) {
      const std::vector<float> logits(static_cast<size_t>(shape_.vocabulary_size), answers ? 0 : std::nanf(""));
      if (segments[i].readout.wanted()) ReadOut(logits, segments[i].readout, outputs[i].readout);
    }
    for (size_t i = 0; answers && i < segments.size(); ++i) {
      outputs[i].target_logprobs.assign(segments[i].targets.size(), -1);
      for (size_t t = 0; logprob_of && t < segments[i].targets.size(); ++t) {
        outputs[i].target_logprobs[t] = logprob_of(segments[i].targets[t]);
      }
      outputs[i].capture.mean_hidden.assign(8, 1);
      if (segments[i].want_capture && segments[i].state_layer >= 0) outputs[i].capture.state = StateOf(segments[i]);
      outputs[i].capture.pathway.layers = 3;
      outputs[i].capture.pathway.experts = 4;
      outputs[i].capture.pathway.weights.assign(12, 0.25f);
    }
    return absl::OkStatus();
  }
  // Made up of the layer and the last token.
  static std::vector<float> StateOf(const Segment& segment) {
    std::vector<float> state(8);
    for (size_t i = 0; i < state.size(); ++i) {
      state[i] = std::cos(static_cast<float>(segment.tokens.back() * static_cast<int>(i + 1) + segment.state_layer));
    }
    return state;
  }
  std::atomic<bool> broken{false};
  bool answers = false;
  std::function<float(int32_t token)> logprob_of;  // where it answers; null: -1 of every token
  std::function<void()> on_forward;                // On the engine's thread, before each pass. May be null.
};

// All parts of a pipeline over a model whose answers are made up, which embeds texts too, and a store in a folder of
// its own. `parts_` lacks workers, admission and metrics. What runs jobs or calls that use these is a member of a
// derived fixture, and so goes first.
class MadeUpPipelineTest : public testing::Test {
 protected:
  explicit MadeUpPipelineTest(const BatcherLimits& limits = BatcherLimits())
      : tokenizer_(*Tokenizer::Load(GoldenPath("byte_level.json"))),
        text_(tokenizer_, absl::FailedPreconditionError("no chat"), 4096, tokenizer_->vocabulary_size()),
        model_(tokenizer_->vocabulary_size()),
        engine_(&model_, limits, 64, nullptr),
        embedding_(nullptr, model_.shape(), 0),
        store_(*OpenReferenceStore(folder_.File("store.db"))),
        shifts_(&feed_, kModelDigest) {
    OpenCatalog(embedding_.digest());
    parts_.model = &model_;
    parts_.engine = &engine_;
    parts_.text = &text_;
    parts_.embedding = &embedding_;
    parts_.shifts = &shifts_;
  }

  // Of what the store holds now.
  void OpenCatalog(const std::string& embedder_digest) {
    CatalogOptions options;
    options.model_digest = kModelDigest;
    options.embedder_digest = embedder_digest;
    options.embedding_dimension = 8;
    options.moe_layers = 3;
    options.experts = 4;
    options.hidden_size = 8;
    catalog_ = *ReferenceCatalog::Open(&feed_, options);
    parts_.catalog = catalog_.get();
  }

  ScratchFolder folder_;
  const std::shared_ptr<const Tokenizer> tokenizer_;
  const PromptText text_;
  MadeUpModel model_;
  Engine engine_;
  const QueryEmbedding embedding_;
  const std::unique_ptr<ReferenceStore> store_;
  StoreFeed feed_{store_.get()};
  LearnedShifts shifts_;
  std::unique_ptr<ReferenceCatalog> catalog_;
  PipelineParts parts_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_PIPELINE_MADE_UP_PIPELINE_H_
