#include "server/pipeline/answer_set.h"

#include <algorithm>
#include <utility>

#include "index/base/steady_time.h"
#include "server/pipeline/pathway_search.h"

namespace c3po {

CallEnd::CallEnd(std::shared_ptr<GenerationListener> listener, std::shared_ptr<AdmissionController::Permit> permit,
                 CallSummary summary, absl::Time arrival, std::shared_ptr<const PathwaySearch> search,
                 const RequestWork& work)
    : listener_(std::move(listener)),
      permit_(std::move(permit)),
      summary_(std::move(summary)),
      arrival_(arrival),
      search_(std::move(search)),
      work_(work) {}

void CallEnd::Finish(const absl::Status& status, const SequenceTimings& timings) {
  StageTimings& all = summary_.timings;
  summary_.sequence = timings;
  const double prepared = all.tokenize_seconds + all.embed_seconds + all.retrieval_seconds;
  // Neighbors that were found after prefill: the scheduler took that for optimization.
  const double retrieved_later =
      search_ == nullptr ? 0 : std::max(0.0, search_->retrieval_seconds() - all.retrieval_seconds);
  all.retrieval_seconds += retrieved_later;
  const double before_batch = timings.before_batch_seconds.value_or(0);
  all.queue_seconds = std::max(0.0, before_batch - prepared);
  all.prefill_seconds = timings.prefill_seconds;
  all.optimization_seconds = std::max(0.0, timings.optimization_seconds - retrieved_later);
  all.optimization_wait_seconds = timings.optimization_wait_seconds;
  all.first_token_seconds = timings.first_token_seconds;
  all.time_to_first_token_seconds = timings.time_to_first_token_seconds;
  const double before_decode =
      before_batch + timings.prefill_seconds + timings.optimization_seconds + timings.optimization_wait_seconds;
  all.decode_seconds = std::max(0.0, absl::ToDoubleSeconds(SteadyNow() - arrival_) - before_decode);
  if (search_ != nullptr) search_->done().PutInto(work_);
  if (search_ != nullptr && search_->index_generation() > 0)
    summary_.provenance.index_generation = search_->index_generation();
  summary_.cost = timings.before_batch_seconds ? work_.Cost() : 0;  // Of what only waited, nothing was done.
  if (permit_ && status.ok()) {
    const double optimization = timings.optimized ? all.optimization_seconds + all.optimization_wait_seconds : 0;
    permit_->Observe(work_, {prepared + retrieved_later, timings.prefill_seconds, optimization, all.decode_seconds});
  }
  // Of a call that never ran, its wait was the others' work.
  const double on_engine = timings.prefill_seconds + timings.optimization_seconds + timings.optimization_wait_seconds;
  if (permit_ && absl::IsDeadlineExceeded(status) && on_engine > 0) permit_->ObserveLate(on_engine);
  permit_.reset();
  search_.reset();
  listener_->OnDone(status, summary_);
}

void ChoiceSink::OnScores(std::vector<ContinuationScore> scores) {
  if (offset_) ApplyOffset(*offset_, scores);
  const auto worse = [](const ContinuationScore& a, const ContinuationScore& b) {
    return a.choice_score() < b.choice_score();
  };
  const auto chosen = static_cast<size_t>(std::max_element(scores.begin(), scores.end(), worse) - scores.begin());
  TextChunk chunk;
  chunk.text = texts_[chosen];
  for (size_t i = 0; i < tokens_[chosen].size(); ++i) {
    SampledToken& token = chunk.tokens.emplace_back();
    token.token_id = tokens_[chosen][i];
    token.logprob = scores[chosen].token_logprobs[i];
  }
  chunk.routes = std::move(scores[chosen].routes);
  for (ContinuationScore& score : scores) score.routes = {};  // The choices are scores alone.
  CallSummary& summary = end_.summary();
  summary.chosen = static_cast<int>(chosen);
  summary.answers = {{FinishReason::kStop, static_cast<int>(tokens_[chosen].size()), std::nullopt}};
  summary.usage.completion_tokens = summary.answers.front().completion_tokens;
  end_.listener().OnScores(std::move(scores));
  end_.listener().OnChunk(std::move(chunk));
}

class AnswerSet::Sink final : public SequenceSink {
 public:
  Sink(std::shared_ptr<AnswerSet> set, int index) : set_(std::move(set)), index_(index) {}
  bool OnToken(const SampledToken& token) override { return set_->TakeToken(index_, token); }
  void OnPrompt(std::vector<SampledToken> prompt) override { set_->end_.listener().OnPrompt(std::move(prompt)); }
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnRoutes(RoutedExperts routes) override { set_->TakeRoutes(index_, std::move(routes)); }
  void OnFinished(const absl::Status& status, FinishReason reason, const SequenceTimings& timings) override {
    set_->TakeEnd(index_, status, reason, timings);
  }

 private:
  const std::shared_ptr<AnswerSet> set_;
  const int index_;
};

AnswerSet::AnswerSet(CallEnd end, std::vector<std::unique_ptr<IncrementalDetokenizer>> detokenizers, Start start)
    : end_(std::move(end)), start_(std::move(start)) {
  for (auto& detokenizer : detokenizers) answers_.push_back({std::move(detokenizer)});
}

std::shared_ptr<SequenceSink> AnswerSet::SinkOf(int index) { return std::make_shared<Sink>(shared_from_this(), index); }

void AnswerSet::StartOthers() {
  const Start start = std::exchange(start_, nullptr);
  for (size_t i = 1; start && i < answers_.size(); ++i) start(static_cast<int>(i), SinkOf(static_cast<int>(i)));
}

// The prompt's go out by themselves; a token's with the next chunk.
void AnswerSet::TakeRoutes(int index, RoutedExperts routes) {
  if (routes.first_position < end_.summary().usage.prompt_tokens) return end_.listener().OnRoutes(std::move(routes));
  answers_[index].routes.Put(routes, 0);
}

bool AnswerSet::TakeToken(int index, const SampledToken& token) {
  StartOthers();
  Answer& answer = answers_[index];
  ++answer.tokens;
  TextChunk chunk;
  chunk.answer = index;
  chunk.prompt_tokens = end_.summary().usage.prompt_tokens;
  chunk.text = answer.detokenizer->Append({token.token_id});
  chunk.tokens.push_back(token);
  chunk.routes = std::exchange(answer.routes, {});
  end_.listener().OnChunk(std::move(chunk));
  return status_.ok() && !answer.detokenizer->stopped();
}

void AnswerSet::TakeEnd(int index, const absl::Status& status, FinishReason reason, const SequenceTimings& timings) {
  if (index == 0) {
    timings_ = timings;
    if (!status.ok()) {
      // Those that were never started have nothing to wait for.
      if (std::exchange(start_, nullptr)) ended_ += answers_.size() - 1;
    } else {
      StartOthers();  // The first answer may be empty.
    }
  }
  Answer& answer = answers_[index];
  answer.reason = reason;
  if (status_.ok()) status_ = status;
  if (status.ok()) {
    TextChunk rest;
    rest.answer = index;
    rest.prompt_tokens = end_.summary().usage.prompt_tokens;
    rest.text = answer.detokenizer->Flush();
    if (answer.detokenizer->stopped()) answer.reason = FinishReason::kStop;
    rest.routes = std::exchange(answer.routes, {});
    if (!rest.text.empty() || !rest.routes.empty()) end_.listener().OnChunk(std::move(rest));
  }
  if (++ended_ < answers_.size()) return;
  CallSummary& summary = end_.summary();
  summary.finish_reason = answers_.front().reason;
  summary.usage.cached_tokens = timings_.cached_prompt_tokens;
  for (const Answer& ended : answers_) {
    summary.answers.push_back({ended.reason, ended.tokens, ended.detokenizer->stop_index()});
    summary.usage.completion_tokens += ended.tokens;
  }
  end_.NoteGenerated(summary.usage.completion_tokens);
  end_.Finish(status_, timings_);
}

}  // namespace c3po
