#ifndef C3PO_SERVER_PIPELINE_ANSWER_SET_H_
#define C3PO_SERVER_PIPELINE_ANSWER_SET_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/admission/admission_controller.h"
#include "server/pipeline/choice_offset.h"
#include "server/pipeline/generation_types.h"
#include "server/text/incremental_detokenizer.h"
#include "server/types/sequence_request.h"

namespace c3po {

class PathwaySearch;

// How a call ends: its place is given back, so that the caller's next request finds it free, then its listener hears of
// it.
class CallEnd {
 public:
  // `permit` is null without an admission controller, `search` without an optimization. `work`: what the call asked
  // for.
  CallEnd(std::shared_ptr<GenerationListener> listener, std::shared_ptr<AdmissionController::Permit> permit,
          CallSummary summary, absl::Time arrival, std::shared_ptr<const PathwaySearch> search,
          const RequestWork& work);

  GenerationListener& listener() { return *listener_; }
  CallSummary& summary() { return summary_; }
  // So many tokens were generated, of the room that the call asked for. What is scored was all asked for.
  void NoteGenerated(int tokens) { work_.output_tokens = tokens; }
  // Once, last. `timings` are what the scheduler saw of the first answer; what is left of the call's time is decoding.
  void Finish(const absl::Status& status, const SequenceTimings& timings);

 private:
  const std::shared_ptr<GenerationListener> listener_;
  std::shared_ptr<AdmissionController::Permit> permit_;
  CallSummary summary_;
  const absl::Time arrival_;
  std::shared_ptr<const PathwaySearch> search_;
  RequestWork work_;
};

// Carries one Score call's results to its listener, with the label offset's scores where there is one.
class ScoreSink final : public SequenceSink {
 public:
  // `offset`: of the continuations, in their order.
  explicit ScoreSink(CallEnd end, std::optional<LabelOffset> offset = std::nullopt)
      : end_(std::move(end)), offset_(std::move(offset)) {}
  bool OnToken(const SampledToken&) override { return true; }
  void OnScores(std::vector<ContinuationScore> scores) override {
    if (offset_) ApplyOffset(*offset_, scores);
    end_.listener().OnScores(std::move(scores));
  }
  void OnRoutes(RoutedExperts prompt) override { end_.listener().OnRoutes(std::move(prompt)); }
  void OnFinished(const absl::Status& status, FinishReason, const SequenceTimings& timings) override {
    end_.Finish(status, timings);
  }

 private:
  CallEnd end_;
  const std::optional<LabelOffset> offset_;
};

// Chooses among the continuations of one call: their scores, the best one (ContinuationScore::choice_score, the first
// of equals) as a chunk, and the end of a call with one answer.
class ChoiceSink final : public SequenceSink {
 public:
  // `texts`, `tokens` and `offset` of the continuations, in one order.
  ChoiceSink(CallEnd end, std::vector<std::string> texts, std::vector<std::vector<int32_t>> tokens,
             std::optional<LabelOffset> offset = std::nullopt)
      : end_(std::move(end)), texts_(std::move(texts)), tokens_(std::move(tokens)), offset_(std::move(offset)) {}
  bool OnToken(const SampledToken&) override { return true; }
  void OnScores(std::vector<ContinuationScore> scores) override;
  void OnRoutes(RoutedExperts prompt) override { end_.listener().OnRoutes(std::move(prompt)); }
  void OnFinished(const absl::Status& status, FinishReason, const SequenceTimings& timings) override {
    end_.Finish(status, timings);
  }

 private:
  CallEnd end_;
  const std::vector<std::string> texts_;
  const std::vector<std::vector<int32_t>> tokens_;
  const std::optional<LabelOffset> offset_;
};

// The answers of one Generate call: sequences over one prompt whose tokens become text here, each with a detokenizer of
// its own. The first is submitted by whoever makes the set. Its first token says that the prompt's keys and values are
// in the cache and that the pathway is found; the others start then, and need neither again. The call ends when all
// have; what fails in one ends the others at their next token. Engine thread only, but for the making.
class AnswerSet : public std::enable_shared_from_this<AnswerSet> {
 public:
  // Starts the answer `index` with `sink`.
  using Start = std::function<void(int index, std::shared_ptr<SequenceSink> sink)>;
  // `start` may be null where there is one answer.
  AnswerSet(CallEnd end, std::vector<std::unique_ptr<IncrementalDetokenizer>> detokenizers, Start start);

  std::shared_ptr<SequenceSink> FirstSink() { return SinkOf(0); }

 private:
  class Sink;
  struct Answer {
    std::unique_ptr<IncrementalDetokenizer> detokenizer;
    FinishReason reason = FinishReason::kStop;
    int tokens = 0;
    RoutedExperts routes = {};  // that no chunk has told yet
  };

  std::shared_ptr<SequenceSink> SinkOf(int index);
  void StartOthers();
  void TakeRoutes(int index, RoutedExperts routes);
  bool TakeToken(int index, const SampledToken& token);
  void TakeEnd(int index, const absl::Status& status, FinishReason reason, const SequenceTimings& timings);

  CallEnd end_;
  std::vector<Answer> answers_;
  Start start_;  // Null once the others were started.
  size_t ended_ = 0;
  absl::Status status_;      // the first failure
  SequenceTimings timings_;  // the first answer's
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_ANSWER_SET_H_
