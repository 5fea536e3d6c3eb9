#include "server/pipeline/collection_learning.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"
#include "server/pipeline/memory_fit.h"
#include "server/pipeline/request_admission.h"
#include "server/pipeline/seeded_shuffle.h"

namespace c3po {
namespace {

constexpr int kReadAtOnce = 500;        // records
constexpr size_t kAmortizeAtOnce = 32;  // references per engine task and commit
constexpr size_t kTuneReferencesMin = 10;
constexpr double kWeightDecayMax = 100;

absl::Status Wrong(absl::string_view field, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", what));
}

absl::Status Check(const TuneRequest& request, const ModelShape& shape) {
  const PriorTunerOptions& tuner = request.tuner;
  if (tuner.critical_layers.empty()) return Wrong("critical_layers", "must name at least one layer");
  for (size_t i = 0; i < tuner.critical_layers.size(); ++i) {
    const int layer = tuner.critical_layers[i];
    if (layer < 0 || layer >= shape.moe_layers || (i > 0 && layer <= tuner.critical_layers[i - 1]))
      return Wrong(absl::StrCat("critical_layers[", i, "]"),
                   absl::StrCat("must be different MoE layers, 0 to ", shape.moe_layers - 1));
  }
  if (tuner.epochs < 1 || tuner.epochs > 1000) return Wrong("epochs", "must be in [1, 1000]");
  if (tuner.batch_size < 1 || tuner.batch_size > 64) return Wrong("batch_size", "must be in [1, 64]");
  const int positions_max = PromptPositionsMax(tuner.batch_size);
  if (tuner.prompt_positions < 1 || tuner.prompt_positions > positions_max)
    return Wrong("prompt_positions",
                 absl::StrCat("must be in [1, ", positions_max, "] for a batch_size of ", tuner.batch_size));
  if (!(tuner.learning_rate > 0 && tuner.learning_rate <= kLearningRateMax))
    return Wrong("learning_rate",
                 absl::StrCat("is ", NumberText(tuner.learning_rate), ", must be in (0, ", kLearningRateMax, "]"));
  if (!(tuner.weight_decay >= 0 && tuner.weight_decay <= kWeightDecayMax))
    return Wrong("weight_decay",
                 absl::StrCat("is ", NumberText(tuner.weight_decay), ", must be in [0, ", kWeightDecayMax, "]"));
  if (tuner.patience < 1 || tuner.patience > 1000) return Wrong("patience", "must be in [1, 1000]");
  if (!(request.validation_fraction > 0 && request.validation_fraction <= 0.5))
    return Wrong("validation_fraction", "must be in (0, 0.5]");
  if (request.max_references != 0 && request.max_references < static_cast<int>(kTuneReferencesMin))
    return Wrong("max_references", absl::StrCat("must be 0 or at least ", kTuneReferencesMin));
  return absl::OkStatus();
}

// Ends a task's sequence; nothing of it is generated.
class TaskSink final : public SequenceSink {
 public:
  explicit TaskSink(std::function<void(const absl::Status&)> done) : done_(std::move(done)) {}
  bool OnToken(const SampledToken&) override { return false; }
  void OnScores(std::vector<ContinuationScore>) override {}
  void OnFinished(const absl::Status& status, FinishReason, const SequenceTimings&) override { done_(status); }

 private:
  const std::function<void(const absl::Status&)> done_;
};

// A step goes up, and down for twice as long.
constexpr int kStepPasses = 3;

PipelineParts WithoutAccounts(PipelineParts parts) {
  parts.metrics = nullptr;
  parts.admission = nullptr;
  return parts;
}

}  // namespace

CollectionLearning::CollectionLearning(const PipelineParts& parts, const ReferenceStore* store, int calls_max)
    : parts_(parts), store_(store), calls_max_(calls_max), scorer_(WithoutAccounts(parts)) {}

CollectionLearning::~CollectionLearning() {
  std::vector<OffsetThread> threads;
  {
    const MutexLock lock(mutex_);
    threads.swap(offset_threads_);
  }
  for (OffsetThread& each : threads) each.thread.join();
}

absl::StatusOr<std::vector<ReferenceRecord>> CollectionLearning::Usable(const std::string& collection,
                                                                        bool successful_only) const {
  std::vector<ReferenceRecord> usable;
  std::string after;
  bool exists = false;
  while (true) {
    C3PO_ASSIGN_OR_RETURN(std::vector<ReferenceRecord> page, store_->List(collection, after, kReadAtOnce));
    if (page.empty()) break;
    exists = true;
    after = page.back().id;
    for (ReferenceRecord& record : page) {
      const bool made_here =
          record.model_digest == parts_.model->shape().digest && record.embedder_digest == parts_.embedding->digest();
      if (made_here && (record.successful || !successful_only)) usable.push_back(std::move(record));
    }
  }
  if (!exists) return absl::NotFoundError(absl::StrCat("collection: \"", collection, "\" does not exist"));
  if (usable.empty())
    return absl::FailedPreconditionError(
        absl::StrCat("collection: \"", collection, "\" has no reference made with this model and embedder"));
  return usable;
}

absl::StatusOr<std::shared_ptr<void>> CollectionLearning::TakePlace() {
  if (calls_->fetch_add(1) < calls_max_)
    return std::shared_ptr<void>(calls_.get(), [calls = calls_](void*) { calls->fetch_sub(1); });
  calls_->fetch_sub(1);
  return absl::ResourceExhaustedError(
      absl::StrCat(calls_max_, " calls learn already (--learning-calls-max); try again once one has ended"));
}

absl::Status CollectionLearning::CheckMemory(const char* what, const OptimizationTask& task) const {
  const int64_t needed = task.memory_bytes(), limit = MemoryMax();
  if (needed <= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " ", MemoryNeed(needed, "a call that learns", limit),
                                                 "; ask for less, or for fewer prompt_positions"));
}

absl::Status CollectionLearning::RunOnEngine(const CallContext& context, int32_t some_token,
                                             std::shared_ptr<OptimizationTask> task, OnTaskDone done) const {
  SequenceRequest request;
  request.request_id = context.request_id;
  request.arrival = context.arrival;
  request.deadline = context.deadline;
  request.cancelled = context.cancelled;
  request.caller = context.caller;
  request.learning = true;
  request.prompt = {some_token};  // A sequence has to begin with something, and to end in something.
  request.continuations = {{some_token}};
  const auto begun = std::make_shared<bool>(false);  // Engine thread only.
  request.on_prefilled = [task, begun](const PromptCapture&,
                                       const Readout&) -> absl::StatusOr<std::shared_ptr<OptimizationTask>> {
    *begun = true;
    return task;
  };
  request.sink =
      std::make_shared<TaskSink>([begun, done = std::move(done)](const absl::Status& status) { done(status, *begun); });
  return parts_.engine->Submit(std::move(request));
}

absl::Status CollectionLearning::TunePrior(TuneRequest request, OnEpoch on_epoch, OnTuned on_done) {
  C3PO_RETURN_IF_ERROR(Check(request, parts_.model->shape()));
  C3PO_ASSIGN_OR_RETURN(std::shared_ptr<void> place, TakePlace());
  on_done = [place = std::move(place), context = request.context,
             told = std::move(on_done)](absl::StatusOr<std::optional<CollectionPrior>> prior) {
    context.Used(0);  // Where the engine had it, that was settled before.
    told(std::move(prior));
  };
  auto shared = std::make_shared<TuneRequest>(std::move(request));
  const bool taken =
      parts_.workers->Submit([this, shared, on_epoch, on_done] { return StartTuning(*shared, on_epoch, on_done); },
                             [on_done](const absl::Status& status) { on_done(status); });
  return taken ? absl::OkStatus() : absl::ResourceExhaustedError("the queue is full: too many requests wait");
}

absl::Status CollectionLearning::StartTuning(const TuneRequest& request, const OnEpoch& on_epoch,
                                             const OnTuned& on_done) const {
  C3PO_ASSIGN_OR_RETURN(std::vector<ReferenceRecord> records, Usable(request.collection, request.successful_only));
  std::mt19937_64 random(request.tuner.seed);
  SeededShuffle(random, records);
  if (request.max_references > 0 && records.size() > static_cast<size_t>(request.max_references))
    records.erase(records.begin() + request.max_references, records.end());
  if (records.size() < kTuneReferencesMin)
    return absl::FailedPreconditionError(absl::StrCat("collection: \"", request.collection, "\" has ", records.size(),
                                                      " references to learn from, fewer than ", kTuneReferencesMin));
  const auto held_apart =
      static_cast<size_t>(std::max(1.0, std::round(request.validation_fraction * static_cast<double>(records.size()))));
  std::vector<NeighborCase> training, validation;
  std::vector<std::string> apart;
  for (size_t i = 0; i < records.size(); ++i) {
    const bool with_choices = ReadsChoices(request.tuner.loss);
    C3PO_ASSIGN_OR_RETURN(NeighborCase neighbor, parts_.text->NeighborTokens(records[i], with_choices));
    (i < held_apart ? validation : training).push_back(std::move(neighbor));
    if (i < held_apart) apart.push_back(records[i].id);
  }
  // What is tried before the first epoch, and what each epoch costs, which prepares its references anew.
  const double share = MovingShare(request.tuner.critical_layers, parts_.model->shape().moe_layers);
  const int positions = request.tuner.prompt_positions;
  const int64_t first = PassesCost(validation, 1, positions, share);
  const int64_t each = PassesCost(training, kStepPasses, positions, share) + first;
  const int32_t token = training.front().prompt.front();
  const auto ended = std::make_shared<std::atomic<int>>(0);  // Epochs; those under way at a failure count.
  const auto note_epoch = [ended, on_epoch](const PriorTuner::Epoch& epoch) {
    ended->store(epoch.number);
    on_epoch(epoch);
  };
  PriorTunerOptions options = request.tuner;
  const auto fits = [&] {
    return PriorTuner::MinibatchBytes(*parts_.model, training, validation, options) <= MemoryMax();
  };
  while (!request.batch_size_was_asked && options.batch_size > 1 && !fits()) options.batch_size /= 2;
  auto tuner =
      std::make_shared<PriorTuner>(parts_.model, std::move(training), std::move(validation), options, note_epoch);
  C3PO_RETURN_IF_ERROR(CheckMemory("batch_size: a minibatch", *tuner));
  C3PO_RETURN_IF_ERROR(request.context.Charge(first + each * request.tuner.epochs));
  const auto store = [parts = parts_, collection = request.collection, tuner, on_done,
                      apart = std::move(apart)]() -> absl::Status {
    std::optional<CollectionPrior> prior = tuner->result();
    if (prior) prior->validation_reference_ids = apart;
    if (prior) C3PO_RETURN_IF_ERROR(parts.shifts->PutPrior(collection, *prior));
    on_done(prior);
    return absl::OkStatus();
  };
  const auto settle = [context = request.context, ended, first, each](bool begun, bool whole) {
    context.Used(begun ? first + each * (ended->load() + (whole ? 0 : 1)) : 0);
  };
  return RunOnEngine(request.context, token, tuner,
                     [parts = parts_, store, on_done, settle](const absl::Status& status, bool begun) {
                       settle(begun, status.ok());
                       if (!status.ok()) return on_done(status);
                       const auto failed = [on_done](const absl::Status& reason) { on_done(reason); };
                       if (!parts.workers->Submit(store, failed))
                         on_done(absl::ResourceExhaustedError("the queue is full: nothing was stored"));
                     });
}

// One Amortize call: tasks of a few references each, one after the other, each committed before the next.
class CollectionLearning::AmortizeRun : public std::enable_shared_from_this<AmortizeRun> {
 public:
  AmortizeRun(const CollectionLearning& learning, AmortizeRequest request, OnProgress on_progress, OnDone on_done)
      : learning_(learning),
        request_(std::move(request)),
        on_progress_(std::move(on_progress)),
        on_done_(std::move(on_done)) {}

  // On a worker, as the steps below; what they return other than OK ends the call.
  absl::Status Begin() {
    C3PO_RETURN_IF_ERROR(Read());
    on_progress_(progress_);
    return Continue();
  }
  void End(const absl::Status& status) {
    request_.context.Used(next_ == 0 ? 0 : cost_until_[next_ - 1]);  // Of all that the engine began.
    on_done_(status);
  }

 private:
  absl::Status Read() {
    const OptimizationSettings& settings = request_.settings;
    const std::string wanted = ShiftSettingsText(settings);
    C3PO_ASSIGN_OR_RETURN(std::vector<ReferenceRecord> records, learning_.Usable(settings.collection, false));
    progress_.total = static_cast<int64_t>(records.size());
    const bool with_choices = ReadsChoices(settings.objective);
    const double share = MovingShare(settings.critical_layers, learning_.parts_.model->shape().moe_layers);
    int64_t cost = 0;
    for (ReferenceRecord& record : records) {
      C3PO_ASSIGN_OR_RETURN(const auto known, learning_.parts_.shifts->Shift(settings.collection, record.id));
      if (known && known->settings == wanted) {
        ++progress_.skipped;
        continue;
      }
      C3PO_ASSIGN_OR_RETURN(NeighborCase neighbor, learning_.parts_.text->NeighborTokens(record, with_choices));
      cost += PassesCost({&neighbor, 1}, kStepPasses * settings.steps, settings.prompt_positions, share);
      cost_until_.push_back(cost);
      todo_.push_back({std::move(neighbor), std::move(record.pathway)});
    }
    return request_.context.Charge(cost);
  }

  absl::Status Continue() {
    if (next_ >= todo_.size()) {
      End(absl::OkStatus());
      return absl::OkStatus();
    }
    const size_t end = std::min(todo_.size(), next_ + kAmortizeAtOnce);
    const auto at = [this](size_t i) { return todo_.begin() + static_cast<std::ptrdiff_t>(i); };
    std::vector<ShiftAmortizer::Reference> references(at(next_), at(end));
    const int32_t token = references.front().neighbor.prompt.front();
    auto self = shared_from_this();
    auto task = std::make_shared<ShiftAmortizer>(learning_.parts_.model, std::move(references), request_.settings,
                                                 [self](ReferenceShift shift) {
                                                   self->found_.push_back(std::move(shift));
                                                   return absl::OkStatus();
                                                 });
    C3PO_RETURN_IF_ERROR(learning_.CheckMemory("optimization.prompt_positions: a reference", *task));
    const size_t begin = std::exchange(next_, end);
    const auto done = [self, begin](const absl::Status& status, bool begun) {
      if (!begun) self->next_ = begin;  // Nobody pays for it.
      if (!status.ok()) return self->End(status);
      const auto commit = [self] { return self->Commit(); };
      const auto failed = [self](const absl::Status& reason) { self->End(reason); };
      if (!self->learning_.parts_.workers->Submit(commit, failed))
        self->End(absl::ResourceExhaustedError("the queue is full: the last shifts were not stored"));
    };
    const absl::Status given = learning_.RunOnEngine(request_.context, token, task, done);
    if (!given.ok()) next_ = begin;  // Nobody is told of the task then, and nobody pays for it.
    return given;
  }

  absl::Status Commit() {
    C3PO_RETURN_IF_ERROR(learning_.parts_.shifts->PutShifts(request_.settings.collection, found_));
    progress_.done += static_cast<int64_t>(found_.size());
    found_.clear();
    on_progress_(progress_);
    return Continue();
  }

  const CollectionLearning& learning_;
  const AmortizeRequest request_;
  const OnProgress on_progress_;
  const OnDone on_done_;
  AmortizeProgress progress_;
  std::vector<ShiftAmortizer::Reference> todo_;
  std::vector<int64_t> cost_until_;  // of each of todo_, with those before it
  size_t next_ = 0;                  // of todo_, to be given to the engine
  std::vector<ReferenceShift> found_;
};

absl::Status CollectionLearning::Amortize(AmortizeRequest request, OnProgress on_progress, OnDone on_done) {
  C3PO_RETURN_IF_ERROR(ValidateSettings(request.settings, parts_.model->shape()));
  C3PO_ASSIGN_OR_RETURN(std::shared_ptr<void> place, TakePlace());
  on_done = [place = std::move(place), told = std::move(on_done)](const absl::Status& status) { told(status); };
  auto run = std::make_shared<AmortizeRun>(*this, std::move(request), std::move(on_progress), std::move(on_done));
  const bool taken =
      parts_.workers->Submit([run] { return run->Begin(); }, [run](const absl::Status& status) { run->End(status); });
  return taken ? absl::OkStatus() : absl::ResourceExhaustedError("the queue is full: too many requests wait");
}

absl::Status CollectionLearning::TuneOffset(OffsetRequest request, OnOffsetProgress on_progress, OnOffset on_done) {
  C3PO_RETURN_IF_ERROR(OffsetTuner::Check(request));
  C3PO_RETURN_IF_ERROR(ValidateSettings(request.settings, parts_.model->shape()));
  C3PO_ASSIGN_OR_RETURN(std::shared_ptr<void> place, TakePlace());
  const auto ended = std::make_shared<std::atomic<bool>>(false);
  auto run = [this, ended, place = std::move(place), request = std::move(request), on_progress = std::move(on_progress),
              on_done = std::move(on_done)]() mutable {
    absl::StatusOr<OffsetTuner::Outcome> outcome = absl::UnknownError("not run");
    const absl::Status caught = CatchEscaped(ThreadKind::kWorker, [&]() -> absl::Status {
      outcome = OffsetTuner::Make(parts_, store_, &scorer_, request)->Run(on_progress);
      return absl::OkStatus();
    });
    if (!caught.ok()) outcome = caught;
    place.reset();
    (void)CatchEscapedIn(ThreadKind::kWorker, [&] {
      request.context.Used(0);  // Of a call that scored something, that was settled before.
      on_done(outcome);
    });
    on_progress = nullptr;  // What they hold goes before the thread may be joined.
    on_done = nullptr;
    ended->store(true);
  };
  const MutexLock lock(mutex_);
  for (auto each = offset_threads_.begin(); each != offset_threads_.end();) {
    if (each->ended->load()) each->thread.join();
    each = each->thread.joinable() ? each + 1 : offset_threads_.erase(each);
  }
  offset_threads_.push_back({std::thread(std::move(run)), ended});
  return absl::OkStatus();
}

}  // namespace c3po
