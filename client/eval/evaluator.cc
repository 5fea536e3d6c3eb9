#include "client/eval/evaluator.h"

#include <map>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "index/base/escaped_exception.h"

namespace c3po {
namespace {

// Every other question would fail as this one did.
bool IsForGood(const absl::Status& status) {
  return absl::IsPermissionDenied(status) || absl::IsUnauthenticated(status) || absl::IsUnimplemented(status);
}

// The work of one run, shared by its threads.
class Evaluation {
 public:
  Evaluation(const RunDescription& run, ItemRunner& runner, RunFolder& folder, EvaluationListener& listener,
             const EvaluationOptions& options)
      : run_(run), runner_(runner), folder_(folder), listener_(listener), options_(options) {
    for (size_t task = 0; task < run.tasks.size(); ++task) {
      for (size_t item = 0; item < run.tasks[task].items.size(); ++item) questions_.emplace_back(task, item);
    }
  }

  EvaluationOutcome Run() {
    std::vector<std::thread> threads;
    for (int i = 0; i < options_.concurrency; ++i) threads.emplace_back([this] { WorkOrFail(); });
    for (std::thread& thread : threads) thread.join();
    absl::MutexLock lock(&mu_);
    return outcome_;
  }

 private:
  void WorkOrFail() {
    const absl::Status caught = CatchEscapedIn(ThreadKind::kWorker, [this] { Work(); });
    absl::MutexLock lock(&mu_);
    if (outcome_.status.ok()) outcome_.status = caught;
  }

  void Work() {
    while (true) {
      size_t question = 0;
      {
        absl::MutexLock lock(&mu_);
        if (Ended() || next_ == questions_.size()) return;
        question = next_++;
      }
      const Task& task = run_.tasks[questions_[question].first];
      AskAll(task, task.items[questions_[question].second]);
    }
  }

  void AskAll(const Task& task, const TaskItem& item) {
    SharedByMethods shared;
    for (const EvalMethod& method : run_.methods) {
      {
        absl::MutexLock lock(&mu_);
        if (Ended()) return;
        if (given_up_.count(method.label) > 0 || folder_.Holds(task.name, item.id, method.label)) continue;
      }
      absl::StatusOr<ItemResult> result = runner_.Run(task, item, method, &shared);
      if (result.ok()) {
        if (const absl::Status finite = CheckFinite(*result); !finite.ok()) result = finite;
      }
      absl::MutexLock lock(&mu_);
      Take(task, item, method, result);
    }
  }

  void Take(const Task& task, const TaskItem& item, const EvalMethod& method, const absl::StatusOr<ItemResult>& result)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (result.ok()) {
      errors_in_a_row_[method.label] = 0;
      const absl::Status written = folder_.Append(*result);
      if (!written.ok()) {
        if (outcome_.status.ok()) outcome_.status = written;
        return;
      }
      ++outcome_.answered;
      listener_.OnResult(*result);
      return;
    }
    if (Ended()) return;  // A call that was cancelled is no error of its question.
    ++outcome_.failed;
    listener_.OnError(task.name, item.id, method.label, result.status());
    const int in_a_row = ++errors_in_a_row_[method.label];
    if (in_a_row < options_.errors_in_a_row_max && !IsForGood(result.status())) return;
    if (!given_up_.insert(method.label).second) return;
    outcome_.given_up.push_back(absl::Status(
        result.status().code(),
        absl::StrCat("method ", method.label, " failed ", in_a_row, in_a_row == 1 ? " time" : " times in a row",
                     " and was given up: ", result.status().message())));
    if (given_up_.size() == run_.methods.size() && outcome_.status.ok()) outcome_.status = outcome_.given_up.back();
  }

  bool Ended() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (options_.cancellation != nullptr && options_.cancellation->cancelled()) outcome_.cancelled = true;
    return outcome_.cancelled || !outcome_.status.ok();
  }

  const RunDescription& run_;
  ItemRunner& runner_;
  RunFolder& folder_;
  EvaluationListener& listener_;
  const EvaluationOptions options_;
  std::vector<std::pair<size_t, size_t>> questions_;  // (task, item)
  absl::Mutex mu_;                                    // also of folder_ and listener_
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<std::string, int> errors_in_a_row_ ABSL_GUARDED_BY(mu_);  // by method
  std::set<std::string> given_up_ ABSL_GUARDED_BY(mu_);              // methods
  EvaluationOutcome outcome_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

EvaluationOutcome Evaluate(const RunDescription& run, ItemRunner& runner, RunFolder& folder,
                           EvaluationListener& listener, const EvaluationOptions& options) {
  return Evaluation(run, runner, folder, listener, options).Run();
}

size_t MissingAnswers(const RunDescription& run, const RunFolder& folder) {
  size_t missing = 0;
  for (const Task& task : run.tasks) {
    for (const TaskItem& item : task.items) {
      for (const EvalMethod& method : run.methods) missing += folder.Holds(task.name, item.id, method.label) ? 0 : 1;
    }
  }
  return missing;
}

}  // namespace c3po
