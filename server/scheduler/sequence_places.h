#ifndef C3PO_SERVER_SCHEDULER_SEQUENCE_PLACES_H_
#define C3PO_SERVER_SCHEDULER_SEQUENCE_PLACES_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/metrics/metrics.h"
#include "server/scheduler/admission_order.h"
#include "server/scheduler/kv_block_pool.h"
#include "server/scheduler/sequence.h"

namespace c3po {

// Places beyond SequencePlaces::Limits::running_max, for callers of whom nothing runs.
inline constexpr int kKeptPlaces = 2;

// Who runs, who waits, and whose the blocks of the cache are. A sequence comes by Wait, runs from an Admit on, may go
// back among those that wait when blocks run out, and leaves by RemoveEnded. It is in one of the two lists until then,
// and never moves in memory.
//
// What runs holds blocks for its positions (Sequence::reserved). What waits holds none. Bookkeeping only: no model, no
// stage but kEnded is acted on by itself. Not thread-safe: the engine thread owns it.
class SequencePlaces {
 public:
  using SequencePtr = std::unique_ptr<Sequence>;
  struct Limits {
    int running_max = 32;   // Sequences that run at once, learning and kKeptPlaces not counted.
    int64_t blocks = 1024;  // Of the cache, KvBlockPool::kPositions each.
  };
  // `metrics` may be null, and outlives this object. `on_preempted` hears of each sequence that goes back, once its
  // blocks are given back and before it waits; it must not call this object. `now` stamps Sequence::admitted.
  SequencePlaces(const Limits& limits, Metrics* metrics, std::function<absl::Time()> now,
                 std::function<void(const Sequence&)> on_preempted);

  // Whether it would run if it were alone, from first to last.
  bool Fits(const SequenceRequest& request) const;
  // Behind all that wait. `sequence` Fits.
  void Wait(SequencePtr sequence) { waiting_.push_back(std::move(sequence)); }

  // Lets in what finds a place and blocks, beside one block more for each that runs:
  // 1. what was preempted amid its optimization and holds memory that others wait for;
  // 2. learning, which has places of its own;
  // 3. requests, in AdmissionOrder; what was preempted stands in front. Nobody overtakes one that finds no blocks.
  //    Where none of its caller's runs, it gets blocks back from a caller that holds more than its part.
  // A sequence begins with the blocks that others left behind where their tokens are the same.
  void Admit();

  // Reserves blocks for what each sequence writes in the next pass, in the order of admission. Where blocks run out the
  // last ones that hold any go back among those that wait, until there are enough.
  void ReserveRows();

  // Ends the life of every sequence of stage kEnded. Its blocks were given back (GiveBack).
  void RemoveEnded();

  const std::deque<SequencePtr>& waiting() const { return waiting_; }   // In the order in which they came.
  const std::vector<SequencePtr>& running() const { return running_; }  // In the order of admission.
  KvBlockPool& pool() { return pool_; }
  const KvBlockPool& pool() const { return pool_; }
  int64_t preemptions() const { return preemptions_; }
  int64_t prefix_hit_tokens() const { return prefix_hit_tokens_; }

 private:
  using Waiting = std::deque<SequencePtr>::iterator;

  void AdmitAll(bool (*wanted)(const SequencePtr&));
  bool AdmitRequest();
  void Run(Waiting next);
  AdmissionOrder OrderOfWaiting() const;
  bool Begin(Sequence& sequence);
  bool TakeBackBlocks(const std::string& for_caller);
  void Preempt(size_t index);

  const Limits limits_;
  Metrics* const metrics_;
  const std::function<absl::Time()> now_;
  const std::function<void(const Sequence&)> on_preempted_;
  std::deque<SequencePtr> waiting_;
  std::vector<SequencePtr> running_;
  KvBlockPool pool_;
  int64_t preemptions_ = 0, prefix_hit_tokens_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_SEQUENCE_PLACES_H_
