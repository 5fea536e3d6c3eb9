#include "server/pipeline/reference_importer.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/time/clock.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "index/types/reference_id.h"
#include "index/types/reference_validation.h"
#include "server/pipeline/reference_gauges.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

constexpr size_t kBatchSamples = 32;
constexpr size_t kQueueSamples = 64;
constexpr absl::Duration kRetryWhenFull = absl::Milliseconds(20);
constexpr size_t kStyleReferences = 64;  // Of the collection: enough to tell what most of them do.
constexpr size_t kContradictedMax = 8;   // Ids told of one sample.

Metrics::Verdict VerdictMetric(SampleOutcome outcome) {
  switch (outcome) {
    case SampleOutcome::kSuccessful:
      return Metrics::Verdict::kSuccessful;
    case SampleOutcome::kFailed:
      return Metrics::Verdict::kFailed;
    case SampleOutcome::kDuplicate:
      return Metrics::Verdict::kDuplicate;
    case SampleOutcome::kMalformed:
      break;
  }
  return Metrics::Verdict::kMalformed;
}

// Whether the sample is what is wrong: malformed, or one that the model or the encoder computes nonsense for. The
// others go on; any other error would meet them too.
bool IsOfSample(const absl::Status& status) { return absl::IsInvalidArgument(status) || IsNotANumber(status); }

size_t BytesOf(const ReferenceSample& sample) {
  size_t bytes = sizeof(sample) + sample.prompt.size() + sample.answer.size() + sample.id.size();
  for (const std::string& choice : sample.choices) bytes += sizeof(choice) + choice.size();
  for (const auto& [key, value] : sample.metadata) bytes += 2 * sizeof(key) + key.size() + value.size();
  return bytes;
}

bool SameContent(const ReferenceSample& a, const ReferenceSample& b) {
  return a.prompt == b.prompt && a.answer == b.answer && a.choices == b.choices && a.metadata == b.metadata;
}

}  // namespace

// What the model said of one sample.
struct ReferenceImport::Judged {
  ReferenceRecord record;
  bool has_choices = false;
  size_t gold = 0;
  absl::Status status = absl::UnknownError("not judged");
  absl::Status embedded;
  std::vector<ContinuationScore> scores;
  std::vector<float> mean_hidden;

  // With choices: the answer has the largest length-normalized log-likelihood, alone. Without: the model's greedy
  // tokens.
  bool Successful() const {
    if (!has_choices) return scores.front().is_greedy;
    for (size_t c = 0; c < scores.size(); ++c) {
      // Written so that what is not a number is no success.
      if (c != gold && !(scores[c].per_token() < scores[gold].per_token())) return false;
    }
    return true;
  }
};

// Charges the sample to `rates`, if any, and gives that back where the sample never runs. Counts down once: at its
// sequence's end, or when it goes without one, as where the engine does not take it or an exception comes.
class ReferenceImport::JudgeSink final : public SequenceSink {
 public:
  JudgeSink(Judged* judged, absl::BlockingCounter* remaining, std::shared_ptr<RateLimiter::Call> rates, int64_t tokens)
      : judged_(judged), remaining_(remaining), rates_(std::move(rates)), tokens_(tokens) {
    if (rates_ != nullptr) rates_->Owe(tokens_);
  }
  ~JudgeSink() override {
    if (!finished_) End(/*ran=*/false);
  }
  bool OnToken(const SampledToken&) override { return true; }
  void OnScores(std::vector<ContinuationScore> scores) override { judged_->scores = std::move(scores); }
  void OnFinished(const absl::Status& status, FinishReason, const SequenceTimings& timings) override {
    if (std::exchange(finished_, true)) return;
    judged_->status = status;
    End(timings.before_batch_seconds.has_value());
  }

 private:
  // Last: once all have ended, the import goes on, or ends its call.
  void End(bool ran) {
    if (!ran && rates_ != nullptr) rates_->GiveBack(tokens_);
    remaining_->DecrementCount();
  }

  Judged* const judged_;
  absl::BlockingCounter* const remaining_;
  const std::shared_ptr<RateLimiter::Call> rates_;
  const int64_t tokens_;
  bool finished_ = false;
};

ReferenceImport::ReferenceImport(const PipelineParts& parts, ImportSettings settings, WorkerPool* pool,
                                 std::shared_ptr<const std::atomic<bool>> cancelled, Events events)
    : parts_(parts),
      settings_(std::move(settings)),
      pool_(pool),
      cancelled_(std::move(cancelled)),
      events_(std::move(events)) {}

std::shared_ptr<ReferenceImport> ReferenceImport::Start(const PipelineParts& parts, ImportSettings settings,
                                                        WorkerPool* pool,
                                                        std::shared_ptr<const std::atomic<bool>> cancelled,
                                                        Events events) {
  return std::shared_ptr<ReferenceImport>(
      new ReferenceImport(parts, std::move(settings), pool, std::move(cancelled), std::move(events)));
}

bool ReferenceImport::Push(uint64_t sequence, ReferenceSample sample) {
  const size_t bytes = BytesOf(sample);
  const absl::MutexLock lock(&mu_);
  if (ended_) return false;
  queue_.push_back({sequence, std::move(sample), bytes});
  queue_bytes_ += bytes;
  room_wanted_ = queue_.size() >= kQueueSamples || queue_bytes_ >= kQueueBytes;
  Schedule();
  return !room_wanted_;
}

void ReferenceImport::Close() {
  const absl::MutexLock lock(&mu_);
  closed_ = true;
  Schedule();
}

void ReferenceImport::Schedule() {
  if (scheduled_ || ended_) return;
  const auto self = shared_from_this();
  scheduled_ =
      pool_->Submit([self] { return self->RunOnce(); }, [self](const absl::Status& status) { self->End(status); });
}

void ReferenceImport::End(const absl::Status& status) {
  {
    const absl::MutexLock lock(&mu_);
    if (std::exchange(ended_, true)) return;
    queue_.clear();
  }
  events_.on_end(status);
}

std::vector<ReferenceImport::Item> ReferenceImport::NextBatch() {
  std::vector<Item> batch;
  bool room = false;
  {
    const absl::MutexLock lock(&mu_);
    while (!queue_.empty() && batch.size() < kBatchSamples) {
      queue_bytes_ -= queue_.front().bytes;
      batch.push_back(std::move(queue_.front()));
      queue_.pop_front();
    }
    room = std::exchange(room_wanted_, false);
  }
  if (room) events_.on_room();
  return batch;
}

void ReferenceImport::LearnStyles() {
  if (std::exchange(styles_known_, true)) return;
  for (const auto& record : parts_.catalog->Some(settings_.collection, kStyleReferences)) {
    const bool with_choices = !record->sample.choices.empty();
    const auto tokens = parts_.text->NeighborTokens(*record, with_choices);
    if (tokens.ok()) styles_.Count(StyleOf(*parts_.text->tokenizer(), FirstTokens(*tokens)));
  }
}

// One batch; the next one is a job of its own, so that imports take turns.
absl::Status ReferenceImport::RunOnce() {
  LearnStyles();
  const std::vector<Item> batch = NextBatch();
  if (!batch.empty()) C3PO_RETURN_IF_ERROR(RunBatch(batch));
  bool ends = false;
  {
    const absl::MutexLock lock(&mu_);
    ends = closed_ && queue_.empty();
    scheduled_ = ends;  // Nothing follows its end.
    if (!queue_.empty()) Schedule();
  }
  if (!ends) return absl::OkStatus();
  ReportRecall(*parts_.catalog, parts_.metrics);
  End(absl::OkStatus());
  return absl::OkStatus();
}

// With the same model and embedder: to run it again would change nothing. An id that the sample brought says nothing of
// its content.
bool ReferenceImport::IsStored(const std::string& id, const ReferenceSample& sample) const {
  const auto stored = parts_.catalog->GetRecord(id);
  return stored.ok() && (*stored)->collection == settings_.collection &&
         (*stored)->model_digest == parts_.model->shape().digest &&
         (*stored)->embedder_digest == parts_.embedding->digest() &&
         (sample.id.empty() || SameContent((*stored)->sample, sample));
}

// Each sample is held against the collection, and those before it.
void ReferenceImport::CheckStyle(const NeighborCase& tokens, bool has_choices, SampleVerdict& verdict) {
  const ChoiceStyle style = StyleOf(*parts_.text->tokenizer(), FirstTokens(tokens));
  if (styles_.AreOtherThan(style)) verdict.warning = StyleWarning(has_choices ? "choices" : "answers like this", style);
  styles_.Count(style);
}

absl::StatusOr<SequenceRequest> ReferenceImport::MakeRequest(const Item& item, std::string id, Judged& judged,
                                                             SampleVerdict& verdict) {
  C3PO_RETURN_IF_ERROR(ValidateSample(item.sample));
  ReferenceRecord& record = judged.record;
  record.sample = item.sample;
  record.collection = settings_.collection;
  record.id = std::move(id);
  record.model_digest = parts_.model->shape().digest;
  record.embedder_digest = parts_.embedding->digest();
  record.created_unix_seconds = absl::ToUnixSeconds(absl::Now());
  judged.has_choices = !item.sample.choices.empty();
  C3PO_ASSIGN_OR_RETURN(NeighborCase tokens, parts_.text->NeighborTokens(record, judged.has_choices));
  judged.gold = static_cast<size_t>(tokens.gold);
  CheckStyle(tokens, judged.has_choices, verdict);
  size_t longest = 0;
  for (const auto& continuation : tokens.continuations) longest = std::max(longest, continuation.size());
  C3PO_RETURN_IF_ERROR(parts_.text->CheckLength("prompt", tokens.prompt.size(), static_cast<int>(longest)));
  SequenceRequest request;
  request.request_id = record.id;
  request.prompt = std::move(tokens.prompt);
  request.continuations = std::move(tokens.continuations);
  request.cancelled = cancelled_;
  request.priority = Priority::kLow;
  if (parts_.embedding->from_model()) request.mean_layer = parts_.embedding->entry_layer();
  request.on_prefilled = [&judged](const PromptCapture& capture,
                                   const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
    judged.record.pathway = capture.pathway;
    judged.mean_hidden = capture.mean_hidden;
    return nullptr;
  };
  return request;
}

// The record of a sample that the engine has scored.
absl::Status ReferenceImport::Complete(Judged& judged) const {
  ReferenceRecord& record = judged.record;
  if (parts_.embedding->from_model()) {
    C3PO_ASSIGN_OR_RETURN(record.embedding, QueryEmbedding::OfStates(std::move(judged.mean_hidden)));
  } else {
    C3PO_RETURN_IF_ERROR(judged.embedded);
  }
  record.successful = judged.Successful();
  return ValidateComputed(record);
}

// Of the samples that the engine is running meanwhile; it does not touch what this sets.
void ReferenceImport::Embed(absl::Span<Judged* const> running) const {
  if (parts_.embedding->from_model() || running.empty()) return;
  std::vector<std::string> texts;
  for (const Judged* one : running) texts.push_back(one->record.sample.prompt);
  auto rows = parts_.embedding->OfTexts(texts);
  for (size_t i = 0; i < running.size(); ++i) {
    auto row = rows.ok() ? std::move((*rows)[i]) : absl::StatusOr<std::vector<float>>(rows.status());
    if (IsOfSample(rows.status())) row = parts_.embedding->OfText(texts[i]);  // One text's fault is not the others'.
    running[i]->embedded = row.status();
    if (row.ok()) running[i]->record.embedding = *std::move(row);
  }
}

// AlreadyExists: it is stored. OK: the engine has it, and its sink.
absl::Status ReferenceImport::Judge(const Item& item, Judged& judged, SampleVerdict& verdict,
                                    absl::BlockingCounter& remaining, bool& has_sink) {
  verdict.sequence = item.sequence;
  std::string id = ReferenceId(settings_.collection, item.sample);
  if (IsStored(id, item.sample)) {
    verdict.id = id;
    verdict.outcome = SampleOutcome::kDuplicate;
    return absl::AlreadyExistsError(id);
  }
  C3PO_ASSIGN_OR_RETURN(SequenceRequest request, MakeRequest(item, std::move(id), judged, verdict));
  size_t tokens = request.prompt.size();
  for (const auto& continuation : request.continuations) tokens += continuation.size();
  request.sink = std::make_shared<JudgeSink>(&judged, &remaining, settings_.rates, static_cast<int64_t>(tokens));
  has_sink = true;
  absl::Status submitted = parts_.engine->Submit(request);
  while (absl::IsResourceExhausted(submitted) && CheckCancelled().ok()) {
    absl::SleepFor(kRetryWhenFull);  // Interactive requests have filled the queue; an import can wait.
    submitted = parts_.engine->Submit(request);
  }
  return submitted;
}

// Side by side, until all have been run. An exception must not leave it while the engine still has some.
void ReferenceImport::JudgeBatch(const std::vector<Item>& batch, std::vector<Judged>& judged,
                                 std::vector<SampleVerdict>& verdicts) {
  absl::BlockingCounter remaining(static_cast<int>(batch.size()));
  std::vector<Judged*> running;
  for (size_t i = 0; i < batch.size(); ++i) {
    bool has_sink = false;
    const absl::Status status =
        CatchEscaped(ThreadKind::kWorker, [&] { return Judge(batch[i], judged[i], verdicts[i], remaining, has_sink); });
    if (!status.ok()) judged[i].status = status;
    if (status.ok()) running.push_back(&judged[i]);
    if (!has_sink) remaining.DecrementCount();
  }
  const absl::Status embedded = CatchEscaped(ThreadKind::kWorker, [&] {
    Embed(running);
    return absl::OkStatus();
  });
  for (Judged* one : running) one->embedded.Update(embedded);
  remaining.Wait();
}

absl::Status ReferenceImport::Commit(std::vector<Judged>& judged, std::vector<SampleVerdict>& verdicts) const {
  std::vector<ReferenceRecord> records;
  std::vector<size_t> of_record;
  for (size_t i = 0; i < judged.size(); ++i) {
    Judged& one = judged[i];
    if (absl::IsAlreadyExists(one.status)) continue;
    if (one.status.ok()) one.status = Complete(one);
    if (IsOfSample(one.status)) {
      verdicts[i].message = std::string(one.status.message());
      verdicts[i].warning.clear();
      continue;
    }
    C3PO_RETURN_IF_ERROR(one.status);
    verdicts[i].id = one.record.id;
    verdicts[i].outcome = one.record.successful ? SampleOutcome::kSuccessful : SampleOutcome::kFailed;
    if (!one.record.sample.id.empty() && parts_.catalog->GetRecord(one.record.id).ok())
      verdicts[i].replaced_ids.push_back(one.record.id);
    of_record.push_back(i);
    records.push_back(std::move(one.record));
  }
  if (records.empty()) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const std::vector<AddOutcome> outcomes, parts_.catalog->Insert(records));
  for (size_t r = 0; r < outcomes.size(); ++r) {
    if (outcomes[r] != AddOutcome::kDuplicate) continue;
    verdicts[of_record[r]].outcome = SampleOutcome::kDuplicate;
    verdicts[of_record[r]].replaced_ids.clear();
  }
  return absl::OkStatus();
}

// What else the collection holds of the prompts of a batch that was committed: deleted, or told as contradictions.
absl::Status ReferenceImport::SettlePrompts(const std::vector<Item>& batch,
                                            std::vector<SampleVerdict>& verdicts) const {
  std::map<std::string, size_t> last_in_batch;
  for (size_t i = 0; i < batch.size(); ++i) last_in_batch[verdicts[i].id] = i;
  std::set<std::string> gone;
  for (size_t i = 0; i < batch.size(); ++i) {
    SampleVerdict& verdict = verdicts[i];
    const ReferenceSample& sample = batch[i].sample;
    if (verdict.id.empty() || (!settings_.replace && verdict.outcome == SampleOutcome::kDuplicate)) continue;
    C3PO_ASSIGN_OR_RETURN(const std::vector<ReferenceRecord> same_prompt,
                          parts_.catalog->WithPrompt(settings_.collection, sample.prompt));
    for (const ReferenceRecord& other : same_prompt) {
      const auto later = last_in_batch.find(other.id);
      const bool comes_later = later != last_in_batch.end() && later->second > i;
      if (other.id == verdict.id || comes_later || gone.count(other.id) > 0) continue;
      if (settings_.replace) {
        verdict.replaced_ids.push_back(other.id);
        gone.insert(other.id);
      } else if (other.sample.answer != sample.answer && verdict.contradicted_ids.size() < kContradictedMax) {
        verdict.contradicted_ids.push_back(other.id);
      }
    }
  }
  if (gone.empty()) return absl::OkStatus();
  return parts_.catalog->Erase(std::vector<std::string>(gone.begin(), gone.end())).status();
}

absl::Status ReferenceImport::CheckCancelled() const {
  const bool cancelled = cancelled_ != nullptr && cancelled_->load();
  return cancelled ? absl::CancelledError("the client cancelled the request") : absl::OkStatus();
}

// Nothing is committed, deleted or told for who has cancelled, not even of duplicates, which the engine never sees.
absl::Status ReferenceImport::RunBatch(const std::vector<Item>& batch) {
  C3PO_RETURN_IF_ERROR(CheckCancelled());
  if (settings_.rates != nullptr) C3PO_RETURN_IF_ERROR(settings_.rates->CheckPaid());
  std::vector<Judged> judged(batch.size());
  std::vector<SampleVerdict> verdicts(batch.size());
  JudgeBatch(batch, judged, verdicts);
  C3PO_RETURN_IF_ERROR(CheckCancelled());
  C3PO_RETURN_IF_ERROR(Commit(judged, verdicts));
  C3PO_RETURN_IF_ERROR(SettlePrompts(batch, verdicts));
  ReportReferences(*parts_.catalog, parts_.metrics);
  if (parts_.metrics != nullptr) {
    for (const SampleVerdict& verdict : verdicts) parts_.metrics->CountReferenceVerdict(VerdictMetric(verdict.outcome));
  }
  events_.on_batch(std::move(verdicts));
  return absl::OkStatus();
}

}  // namespace c3po
