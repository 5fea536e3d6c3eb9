#ifndef C3PO_SERVER_PIPELINE_EMBED_SINK_H_
#define C3PO_SERVER_PIPELINE_EMBED_SINK_H_

#include <utility>
#include <vector>

#include "server/pipeline/generation_pipeline.h"
#include "server/pipeline/query_embedding.h"
#include "server/types/sequence_request.h"

namespace c3po {

// Carries a prompt's mean hidden state out of the engine. What never ran there costs the call nothing.
class EmbedSink final : public SequenceSink {
 public:
  EmbedSink(const CallContext& context, GenerationPipeline::EmbeddingCallback done)
      : context_(context), done_(std::move(done)) {}
  void TakeStates(std::vector<float> mean_hidden) { mean_hidden_ = std::move(mean_hidden); }
  bool OnToken(const SampledToken&) override { return true; }
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnFinished(const absl::Status& status, FinishReason, const SequenceTimings& timings) override {
    if (!timings.before_batch_seconds) context_.Used(0);
    if (status.ok()) {
      done_(QueryEmbedding::OfStates(std::move(mean_hidden_)));
    } else {
      done_(status);
    }
  }

 private:
  const CallContext context_;
  const GenerationPipeline::EmbeddingCallback done_;
  std::vector<float> mean_hidden_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_EMBED_SINK_H_
