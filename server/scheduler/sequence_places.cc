#include "server/scheduler/sequence_places.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/scheduler/sequence_blocks.h"

namespace c3po {
namespace {

bool Learns(const SequencePlaces::SequencePtr& sequence) { return sequence->request.learning; }

bool HoldsMemory(const SequencePlaces::SequencePtr& sequence) { return sequence->work_granted; }

}  // namespace

SequencePlaces::SequencePlaces(const Limits& limits, Metrics* metrics, std::function<absl::Time()> now,
                               std::function<void(const Sequence&)> on_preempted)
    : limits_(limits),
      metrics_(metrics),
      now_(std::move(now)),
      on_preempted_(std::move(on_preempted)),
      pool_(limits.blocks) {}

bool SequencePlaces::Fits(const SequenceRequest& request) const { return BlocksNeeded(request) <= pool_.blocks(); }

void SequencePlaces::RemoveEnded() {
  const auto ended = [](const SequencePtr& sequence) { return sequence->stage == Sequence::Stage::kEnded; };
  waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), ended), waiting_.end());
  running_.erase(std::remove_if(running_.begin(), running_.end(), ended), running_.end());
}

void SequencePlaces::Admit() {
  AdmitAll(HoldsMemory);  // It needs no cache.
  AdmitAll(Learns);
  while (AdmitRequest()) {
  }
}

// The first of those wanted, then the next, until one does not fit.
void SequencePlaces::AdmitAll(bool (*wanted)(const SequencePtr&)) {
  while (true) {
    const auto next = std::find_if(waiting_.begin(), waiting_.end(), wanted);
    if (next == waiting_.end() || !Begin(**next)) return;
    Run(next);
  }
}

// One request; false: none waits, or the next one has to wait on.
bool SequencePlaces::AdmitRequest() {
  if (std::all_of(waiting_.begin(), waiting_.end(), Learns)) return false;
  const auto learning = std::count_if(running_.begin(), running_.end(), Learns);
  const int free = limits_.running_max - static_cast<int>(running_.size() - static_cast<size_t>(learning));
  const AdmissionOrder order = OrderOfWaiting();
  if (free <= (order.running() == 0 ? -kKeptPlaces : 0)) return false;
  Sequence* const chosen = waiting_[order.next()].get();
  while (!Begin(*chosen)) {
    if (order.running() > 0 || !TakeBackBlocks(chosen->request.caller)) return false;
  }
  // What was preempted for it stands before it now.
  const auto is_chosen = [chosen](const SequencePtr& s) { return s.get() == chosen; };
  Run(std::find_if(waiting_.begin(), waiting_.end(), is_chosen));
  return true;
}

void SequencePlaces::Run(Waiting next) {
  running_.push_back(std::move(*next));
  waiting_.erase(next);
}

AdmissionOrder SequencePlaces::OrderOfWaiting() const {
  AdmissionOrder order;
  for (const SequencePtr& sequence : running_) {
    if (!sequence->request.learning) order.CountRunning(sequence->request.caller);
  }
  for (size_t i = 0; i < waiting_.size(); ++i) {
    if (!waiting_[i]->request.learning) order.Offer(i, waiting_[i]->request);
  }
  return order;
}

// Of the callers with several sequences, from the one that holds the most, if that is more than its part beside the
// others and `for_caller`, the last sequence gives its blocks back. A caller's only one keeps them: else its caller,
// who would have none then, took them back in turn, and neither got on. False: nobody holds more.
bool SequencePlaces::TakeBackBlocks(const std::string& for_caller) {
  struct Held {
    int64_t blocks = 0;
    int sequences = 0;  // that hold any
  };
  std::map<absl::string_view, Held> held;
  held[for_caller] = {};
  for (const SequencePtr& s : running_) {
    if (s->request.learning) continue;
    Held& own = held[s->request.caller];
    own.blocks += static_cast<int64_t>(s->blocks.size());
    own.sequences += s->blocks.empty() ? 0 : 1;
  }
  const auto takeable = [](const Held& h) { return h.sequences > 1 ? h.blocks : 0; };
  const auto less = [&](const auto& a, const auto& b) { return takeable(a.second) < takeable(b.second); };
  const auto most = std::max_element(held.begin(), held.end(), less);
  if (takeable(most->second) <= pool_.blocks() / static_cast<int64_t>(held.size())) return false;
  for (size_t i = running_.size(); i > 0; --i) {
    const Sequence& s = *running_[i - 1];
    if (s.request.learning || s.request.caller != most->first || s.blocks.empty()) continue;
    Preempt(i - 1);
    return true;
  }
  return false;
}

// Takes what others left of its beginning, if the rest of it fits beside one block more for each that runs. One that
// was preempted amid its optimization takes nothing: it needs its cache when that has ended.
bool SequencePlaces::Begin(Sequence& sequence) {
  if (sequence.stage == Sequence::Stage::kOptimizing) return true;
  const int64_t wanted =
      KvBlockPool::BlocksFor(std::max(sequence.reserved(), sequence.wanted() + (sequence.scoring() ? 0 : 1)));
  KvBlockPool::Prefix prefix{{}, sequence.root()};
  // A mean over the prompt needs all of its states, its log-probabilities all of its rows, and what is found in the
  // cache says nothing of its experts.
  const bool needs_all =
      sequence.request.mean_layer >= 0 || sequence.reads_prompt() || sequence.request.want_prompt_routes;
  if (!needs_all) {
    const int known = std::min(sequence.shareable(), sequence.wanted() - 1);
    prefix = pool_.TakePrefix(absl::MakeSpan(sequence.tokens).subspan(0, std::max(0, known)), sequence.root());
  }
  const auto shared = static_cast<int64_t>(prefix.blocks.size());
  if (pool_.available() < wanted - shared + static_cast<int64_t>(running_.size())) {
    for (size_t i = prefix.blocks.size(); i > 0; --i) pool_.Release(prefix.blocks[i - 1]);
    return false;
  }
  sequence.blocks = std::move(prefix.blocks);
  sequence.chain = prefix.chain;
  sequence.named = static_cast<int>(shared);
  sequence.cached = sequence.named * KvBlockPool::kPositions;
  prefix_hit_tokens_ += sequence.cached;
  if (metrics_) metrics_->CountPrefixCache(sequence.wanted(), sequence.cached);
  if (sequence.admitted_before) return true;
  sequence.admitted_before = true;
  sequence.admitted = now_();
  sequence.timings.cached_prompt_tokens = sequence.cached;
  sequence.timings.before_batch_seconds = absl::ToDoubleSeconds(sequence.admitted - sequence.request.arrival);
  return true;
}

// Room for what each sequence writes in this step, in the order of admission: the last ones give theirs back until it
// is there. One that optimizes and has nothing to give goes on.
void SequencePlaces::ReserveRows() {
  const auto gives = [](const Sequence& s) { return s.stage != Sequence::Stage::kOptimizing || !s.blocks.empty(); };
  for (size_t i = 0; i < running_.size();) {
    Sequence& s = *running_[i];
    if (pool_.available() >= BlocksMissing(s)) {
      Reserve(s, s.reserved(), pool_);
      ++i;
      continue;
    }
    size_t last = running_.size() - 1;
    while (last > i && !gives(*running_[last])) --last;
    Preempt(last);
  }
}

void SequencePlaces::Preempt(size_t index) {
  const auto place = running_.begin() + static_cast<std::ptrdiff_t>(index);
  GiveBack(**place, pool_);
  on_preempted_(**place);
  waiting_.push_front(std::move(*place));
  running_.erase(place);
  ++preemptions_;
  if (metrics_) metrics_->CountPreemption();
}

}  // namespace c3po
