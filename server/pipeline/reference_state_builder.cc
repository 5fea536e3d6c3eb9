#include "server/pipeline/reference_state_builder.h"

#include <utility>

#include "absl/synchronization/blocking_counter.h"
#include "absl/time/clock.h"
#include "index/base/status_macros.h"
#include "index/base/steady_time.h"
#include "server/metrics/logging.h"
#include "server/pipeline/query_embedding.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

constexpr size_t kBatchReferences = 32;
constexpr absl::Duration kRetryWhenFull = absl::Milliseconds(20);

// Whether the reference is what is wrong: its state is left out. Any other failure would meet the others too.
bool IsOfReference(const absl::Status& status) { return absl::IsInvalidArgument(status) || IsNotANumber(status); }

}  // namespace

// Keeps what the prompt's capture holds. Counts down once: at its sequence's end, or when it goes without one.
class ReferenceStateBuilder::StateSink final : public SequenceSink {
 public:
  explicit StateSink(absl::BlockingCounter* remaining, std::vector<float>* state, absl::Status* status)
      : remaining_(remaining), state_(state), status_(status) {}
  ~StateSink() override {
    if (!finished_) remaining_->DecrementCount();
  }
  void Take(std::vector<float> state) { *state_ = std::move(state); }
  bool OnToken(const SampledToken&) override { return true; }
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnFinished(const absl::Status& status, FinishReason, const SequenceTimings&) override {
    if (std::exchange(finished_, true)) return;
    *status_ = status;
    remaining_->DecrementCount();
  }

 private:
  absl::BlockingCounter* const remaining_;
  std::vector<float>* const state_;
  absl::Status* const status_;
  bool finished_ = false;
};

ReferenceStateBuilder::~ReferenceStateBuilder() { stopping_->store(true); }

bool ReferenceStateBuilder::WhenReady(const CallContext& context, const std::string& collection, int layer,
                                      Ready ready) {
  if (catalog_->HasAllStates(collection, layer)) return true;
  const Key key(collection, layer);
  bool is_new = false;
  {
    const MutexLock lock(mutex_);
    const auto [task, inserted] = tasks_.try_emplace(key);
    is_new = inserted;
    if (is_new) task->second.began = SteadyNow();
    task->second.waiters.push_back({context, std::move(ready)});
  }
  if (is_new) Schedule(key);
  return false;
}

void ReferenceStateBuilder::Schedule(const Key& key) {
  const bool taken = pool_.Submit([this, key] { return RunBatch(key); },
                                  [this, key](const absl::Status& status) { End(key, status); });
  if (!taken) End(key, absl::ResourceExhaustedError("too many collections wait for their references' states"));
}

// One batch; the next one is a job of its own, so that tasks take turns.
absl::Status ReferenceStateBuilder::RunBatch(const Key& key) {
  const auto& [collection, layer] = key;
  if (stopping_->load()) return absl::UnavailableError("the server is shutting down");
  if (!AnybodyWaits(key)) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const auto missing, catalog_->WithoutState(collection, layer, kBatchReferences));
  if (missing.empty()) {
    C3PO_RETURN_IF_ERROR(catalog_->RefreshStateDistances(collection, layer));
    End(key, absl::OkStatus());
    return absl::OkStatus();
  }
  const auto states = Compute(missing, layer, RatesOf(key));
  if (stopping_->load()) return absl::UnavailableError("the server is shutting down");
  C3PO_RETURN_IF_ERROR(states.status());
  C3PO_RETURN_IF_ERROR(catalog_->AddStates(collection, layer, *states));
  {
    const MutexLock lock(mutex_);
    const auto task = tasks_.find(key);
    if (task != tasks_.end()) task->second.made += static_cast<int64_t>(states->size());
  }
  Schedule(key);
  return absl::OkStatus();
}

// Side by side, until all have been run.
absl::StatusOr<std::vector<ReferenceCatalog::ReferenceState>> ReferenceStateBuilder::Compute(
    const std::vector<std::shared_ptr<const ReferenceRecord>>& records, int layer,
    const std::shared_ptr<RateLimiter::Call>& rates) {
  std::vector<ReferenceCatalog::ReferenceState> states(records.size());
  std::vector<absl::Status> statuses(records.size(), absl::UnknownError("not run"));
  absl::BlockingCounter remaining(static_cast<int>(records.size()));
  for (size_t i = 0; i < records.size(); ++i) {
    states[i].record = records[i];
    auto sink = std::make_shared<StateSink>(&remaining, &states[i].state, &statuses[i]);
    const absl::Status submitted = Submit(*records[i], layer, std::move(sink), rates);
    if (!submitted.ok()) statuses[i] = submitted;  // Its sink has gone.
  }
  remaining.Wait();
  for (size_t i = 0; i < records.size(); ++i) {
    if (statuses[i].ok()) {
      auto unit = QueryEmbedding::OfStates(std::move(states[i].state));
      statuses[i] = unit.status();
      if (unit.ok()) states[i].state = *std::move(unit);
    }
    if (statuses[i].ok()) continue;
    if (!IsOfReference(statuses[i])) return statuses[i];
    states[i].state.clear();
    Log(LogLevel::kWarning, "state_left_out", "", {{"reference", records[i]->id}, {"reason", statuses[i].message()}});
  }
  return states;
}

absl::Status ReferenceStateBuilder::Submit(const ReferenceRecord& record, int layer, std::shared_ptr<StateSink> sink,
                                           const std::shared_ptr<RateLimiter::Call>& rates) {
  C3PO_ASSIGN_OR_RETURN(NeighborCase tokens, text_->NeighborTokens(record, !record.sample.choices.empty()));
  if (rates != nullptr) rates->Owe(static_cast<int64_t>(tokens.prompt.size()));
  SequenceRequest request;
  request.request_id = record.id;
  request.continuations = {{tokens.prompt.front()}};  // Scored only because a sequence has to end in something.
  request.prompt = std::move(tokens.prompt);
  request.cancelled = stopping_;
  request.priority = Priority::kLow;
  request.state_layer = layer;
  request.on_prefilled = [sink](const PromptCapture& capture,
                                const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
    sink->Take(capture.state);
    return nullptr;
  };
  request.sink = std::move(sink);
  absl::Status submitted = engine_->Submit(request);
  while (absl::IsResourceExhausted(submitted) && !stopping_->load()) {
    absl::SleepFor(kRetryWhenFull);  // Requests have filled the queue.
    submitted = engine_->Submit(request);
  }
  return submitted;
}

// Lets go who was cancelled or is late; false, and the task is over, where nobody is left.
bool ReferenceStateBuilder::AnybodyWaits(const Key& key) {
  std::vector<std::pair<Ready, absl::Status>> gone;
  bool any = false;
  {
    const MutexLock lock(mutex_);
    const auto task = tasks_.find(key);
    if (task == tasks_.end()) return false;
    std::vector<Waiter> left;
    for (Waiter& waiter : task->second.waiters) {
      const auto& cancelled = waiter.context.cancelled;
      if (cancelled != nullptr && cancelled->load(std::memory_order_relaxed)) {
        gone.emplace_back(std::move(waiter.ready), absl::CancelledError("the client cancelled the request"));
      } else if (SteadyNow() > waiter.context.deadline) {
        gone.emplace_back(std::move(waiter.ready),
                          absl::DeadlineExceededError("the deadline passed while the references' states were made"));
      } else {
        left.push_back(std::move(waiter));
      }
    }
    any = !left.empty();
    task->second.waiters = std::move(left);
    if (!any) tasks_.erase(task);
  }
  for (const auto& [ready, status] : gone) ready(status);
  return any;
}

std::shared_ptr<RateLimiter::Call> ReferenceStateBuilder::RatesOf(const Key& key) {
  const MutexLock lock(mutex_);
  const auto task = tasks_.find(key);
  return task == tasks_.end() || task->second.waiters.empty() ? nullptr : task->second.waiters.front().context.rates;
}

void ReferenceStateBuilder::End(const Key& key, const absl::Status& status) {
  Task ended;
  {
    const MutexLock lock(mutex_);
    const auto task = tasks_.find(key);
    if (task == tasks_.end()) return;
    ended = std::move(task->second);
    tasks_.erase(task);
  }
  Log(status.ok() ? LogLevel::kInfo : LogLevel::kWarning, "reference_states", "",
      {{"collection", key.first},
       {"layer", key.second},
       {"made", ended.made},
       {"seconds", absl::ToDoubleSeconds(SteadyNow() - ended.began)},
       {"status", status.ok() ? "OK" : std::string(status.message())}});
  for (const Waiter& waiter : ended.waiters) waiter.ready(status);
}

}  // namespace c3po
