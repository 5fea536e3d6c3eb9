#ifndef C3PO_SERVER_PIPELINE_REFERENCE_IMPORTER_H_
#define C3PO_SERVER_PIPELINE_REFERENCE_IMPORTER_H_

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/types/span.h"
#include "index/types/reference_record.h"
#include "server/pipeline/choice_style.h"
#include "server/pipeline/generation_pipeline.h"
#include "server/pipeline/worker_pool.h"

namespace c3po {

enum class SampleOutcome { kSuccessful, kFailed, kMalformed, kDuplicate };

struct SampleVerdict {
  uint64_t sequence = 0;  // the client's number
  std::string id;         // empty when malformed
  SampleOutcome outcome = SampleOutcome::kMalformed;
  std::string message;  // why it is malformed
  // Ids that went for it, and ids that have its prompt with another answer (some of them, where they are many).
  std::vector<std::string> replaced_ids, contradicted_ids;
  std::string warning;  // it is stored, but will hardly help
};

struct ImportSettings {
  std::string collection;
  bool replace = false;  // A stored sample takes the place of the collection's other references with its prompt.
  // What the tokens of samples that run are charged to: an import ends with ResourceExhausted before a batch for which
  // nothing is left. Null: nothing.
  std::shared_ptr<RateLimiter::Call> rates = nullptr;
};

// One stream of samples on its way into the store. Each sample is run through the model: with choices it is successful
// when the answer has the largest length-normalized log-likelihood of all; without, when the model's greedy tokens
// after the prompt are the answer's tokens. A sample that the model or the encoder computes nonsense for (NaN) is
// malformed, and the import goes on; any other failure ends it. Samples go in batches, of which each prompt is
// tokenized once: judged side by side by the engine while one call of the encoder embeds them all, committed in one
// transaction, and only then are their verdicts reported. A batch is one job of a pool that imports share: one that
// waits for samples takes no thread. At most 64 samples wait, and no more once those that do are kQueueBytes.
//
// What a sample replaces for its prompt is deleted after the sample was committed, so that a crash between the two
// loses nothing; the same import deletes it when it comes again. Of samples with one prompt the last one of the stream
// stays.
class ReferenceImport : public std::enable_shared_from_this<ReferenceImport> {
 public:
  static constexpr size_t kQueueBytes = size_t{4} << 20;

  struct Events {
    std::function<void()> on_room;                             // Push would take a sample again
    std::function<void(std::vector<SampleVerdict>)> on_batch;  // committed
    std::function<void(const absl::Status&)> on_end;           // last; an error means that uncommitted samples are lost
  };

  // `cancelled` set: ends soon with Cancelled, and no batch is committed any more that is not being committed. Events
  // come from threads of `pool`, one at a time; after on_end nothing that they touch is used. `pool` outlives the last
  // job, and its queue has room for one job per import.
  static std::shared_ptr<ReferenceImport> Start(const PipelineParts& parts, ImportSettings settings, WorkerPool* pool,
                                                std::shared_ptr<const std::atomic<bool>> cancelled, Events events);

  // Never blocks. False: the queue is now full; wait for on_room before the next one.
  bool Push(uint64_t sequence, ReferenceSample sample);
  // No more samples: on_end follows once all are committed.
  void Close();

 private:
  struct Item {
    uint64_t sequence;
    ReferenceSample sample;
    size_t bytes;
  };
  struct Judged;
  class JudgeSink;

  ReferenceImport(const PipelineParts& parts, ImportSettings settings, WorkerPool* pool,
                  std::shared_ptr<const std::atomic<bool>> cancelled, Events events);
  void Schedule() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status RunOnce();
  void LearnStyles();
  void End(const absl::Status& status);
  absl::Status Complete(Judged& judged) const;
  absl::Status CheckCancelled() const;
  absl::Status RunBatch(const std::vector<Item>& batch);
  absl::Status Judge(const Item& item, Judged& judged, SampleVerdict& verdict, absl::BlockingCounter& remaining,
                     bool& has_sink);
  void JudgeBatch(const std::vector<Item>& batch, std::vector<Judged>& judged, std::vector<SampleVerdict>& verdicts);
  void CheckStyle(const NeighborCase& tokens, bool has_choices, SampleVerdict& verdict);
  absl::Status Commit(std::vector<Judged>& judged, std::vector<SampleVerdict>& verdicts) const;
  absl::Status SettlePrompts(const std::vector<Item>& batch, std::vector<SampleVerdict>& verdicts) const;
  bool IsStored(const std::string& id, const ReferenceSample& sample) const;
  absl::StatusOr<SequenceRequest> MakeRequest(const Item& item, std::string id, Judged& judged, SampleVerdict& verdict);
  void Embed(absl::Span<Judged* const> running) const;
  std::vector<Item> NextBatch();

  const PipelineParts parts_;
  const ImportSettings settings_;
  WorkerPool* const pool_;
  ChoiceStyles styles_;  // of the collection's references, and of the samples so far; of the job that runs
  bool styles_known_ = false;
  const std::shared_ptr<const std::atomic<bool>> cancelled_;
  const Events events_;
  absl::Mutex mu_;
  std::deque<Item> queue_ ABSL_GUARDED_BY(mu_);
  size_t queue_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  bool scheduled_ ABSL_GUARDED_BY(mu_) = false;  // A job waits or runs.
  bool room_wanted_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_REFERENCE_IMPORTER_H_
