#include "client/eval/reference_scoring.h"

#include <algorithm>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "client/eval/label_task.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr uint32_t kPageSize = 500;

// The method that the scores are of, whatever the run calls it.
EvalMethod ModelAlone() {
  EvalMethod method;
  method.label = "none";
  method.optimization.set_method(v1::METHOD_NONE);
  return method;
}

TaskItem QuestionOf(const ReferenceScore& reference) {
  TaskItem item;
  item.id = reference.answer.id;
  item.prompt = reference.prompt;
  item.choices = reference.choices;
  item.gold = reference.answer.gold;
  item.answer = reference.choices[reference.answer.gold];
  return item;
}

// Whether the next reference may well succeed.
bool IsOfOneReference(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsInvalidArgument(status);
}

// The work of one call, shared by its threads.
class Scoring {
 public:
  Scoring(const std::vector<Task>& tasks, ItemRunner& runner, ReferenceScoreFile& file,
          const ReferenceScoringOptions& options)
      : tasks_(tasks),
        runner_(runner),
        file_(file),
        options_(options),
        wanted_(ReferencesToScore(file, options.scored_max)) {}

  absl::StatusOr<ReferenceScoringOutcome> Run() {
    std::vector<std::thread> threads;
    const int count = std::min<int>(options_.concurrency, static_cast<int>(wanted_.size()));
    for (int i = 0; i < count; ++i) threads.emplace_back([this] { WorkOrFail(); });
    for (std::thread& thread : threads) thread.join();
    absl::MutexLock lock(&mu_);
    if (!status_.ok()) return status_;
    return outcome_;
  }

 private:
  void WorkOrFail() {
    const absl::Status caught = CatchEscapedIn(ThreadKind::kWorker, [this] { Work(); });
    absl::MutexLock lock(&mu_);
    if (status_.ok()) status_ = caught;
  }

  void Work() {
    const EvalMethod method = ModelAlone();
    while (true) {
      ReferenceScore reference;
      size_t index = 0;
      {
        absl::MutexLock lock(&mu_);
        if (options_.cancellation != nullptr && options_.cancellation->cancelled() && status_.ok()) {
          status_ = absl::CancelledError("ended by a signal");
        }
        if (!status_.ok() || next_ == wanted_.size()) return;
        index = wanted_[next_++];
        reference = file_.references()[index];
      }
      const auto task = std::find_if(tasks_.begin(), tasks_.end(),
                                     [&](const Task& each) { return each.name == reference.answer.task; });
      if (task == tasks_.end()) continue;
      SharedByMethods shared;
      absl::StatusOr<ItemResult> answer = runner_.Run(*task, QuestionOf(reference), method, &shared);
      if (answer.ok()) {
        if (const absl::Status finite = CheckFinite(*answer); !finite.ok()) answer = finite;
      }
      absl::MutexLock lock(&mu_);
      Take(index, answer);
    }
  }

  void Take(size_t index, const absl::StatusOr<ItemResult>& answer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    absl::Status status = answer.status();
    if (answer.ok()) status = file_.SetAnswer(index, *answer);
    if (answer.ok() && status.ok()) {
      ++outcome_.scored;
    } else if (!answer.ok() && IsOfOneReference(status)) {
      ++outcome_.failed;
    } else if (status_.ok()) {
      status_ = status;
    }
    if (options_.on_progress) options_.on_progress(outcome_.scored + outcome_.failed);
  }

  const std::vector<Task>& tasks_;
  ItemRunner& runner_;
  ReferenceScoreFile& file_;  // guarded by mu_
  const ReferenceScoringOptions& options_;
  const std::vector<size_t> wanted_;
  absl::Mutex mu_;
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  ReferenceScoringOutcome outcome_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

std::vector<std::string> LabelsOf(const Task& task) {
  std::vector<std::vector<std::string>> choices;
  for (const TaskItem& item : task.items) choices.push_back(item.choices);
  return task.kind == TaskKind::kChoice ? SharedLabels(choices) : std::vector<std::string>();
}

absl::StatusOr<std::vector<ReferenceScore>> ListLabelledReferences(Client& client, const Task& task,
                                                                   const CallOptions& options) {
  std::vector<ReferenceScore> references;
  const std::vector<std::string> labels = LabelsOf(task);
  if (labels.empty()) return references;
  v1::ListReferencesRequest request;
  request.set_collection(task.collection);
  request.set_page_size(kPageSize);
  size_t listed = 0;
  const absl::Status status = client.ForEachReference(
      request,
      [&](const v1::Reference& reference) {
        const v1::ReferenceSample& sample = reference.sample();
        ReferenceScore score;
        score.prompt = sample.prompt();
        score.choices.assign(sample.choices().begin(), sample.choices().end());
        if (score.choices.empty()) score.choices = task.items.front().choices;
        const auto of_choices = LabelsOfChoices(labels, score.choices);
        const int label = LabelOfAnswer(labels, sample.answer());
        if (of_choices && label >= 0) {
          score.answer.task = task.name;
          score.answer.id = reference.id();
          score.answer.method = ModelAlone().label;
          score.answer.gold =
              static_cast<int>(std::find(of_choices->begin(), of_choices->end(), label) - of_choices->begin());
          references.push_back(std::move(score));
        }
        return ++listed < kReferencesListedMax;
      },
      options);
  if (absl::IsNotFound(status) || absl::IsPermissionDenied(status)) return std::vector<ReferenceScore>();
  C3PO_RETURN_IF_ERROR(status);
  return references;
}

std::vector<size_t> ReferencesToScore(const ReferenceScoreFile& file, size_t scored_max) {
  std::map<std::string, std::vector<size_t>> of_task;  // by task, in the file's order
  for (size_t i = 0; i < file.references().size(); ++i) of_task[file.references()[i].answer.task].push_back(i);
  std::vector<size_t> wanted;
  for (const auto& [task, indexes] : of_task) {
    size_t taken = 0;
    for (const size_t at : ShuffledOrder(indexes.size(), 0)) {
      if (taken++ == scored_max) break;
      if (!file.references()[indexes[at]].scored()) wanted.push_back(indexes[at]);
    }
  }
  return wanted;
}

absl::StatusOr<ReferenceScoringOutcome> ScoreReferences(const std::vector<Task>& tasks, ItemRunner& runner,
                                                        ReferenceScoreFile& file,
                                                        const ReferenceScoringOptions& options) {
  return Scoring(tasks, runner, file, options).Run();
}

}  // namespace c3po
