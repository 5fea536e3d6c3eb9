#include "client/eval/task_scorer.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "index/base/escaped_exception.h"

namespace c3po {

absl::StatusOr<std::vector<ItemResult>> TaskScorer::Score(const v1::OptimizationOptions& options,
                                                          absl::Span<const size_t> questions) {
  EvalMethod method;
  method.label = "calibrated";
  method.optimization = options;
  std::vector<ItemResult> results(questions.size());
  absl::Mutex mu;
  size_t next = 0;  // guarded by mu, as is status
  absl::Status status;
  const auto work = [&] {
    while (true) {
      size_t index = 0;
      {
        absl::MutexLock lock(&mu);
        if (!status.ok() || next == questions.size()) return;
        index = next++;
      }
      SharedByMethods shared;
      absl::StatusOr<ItemResult> result = runner_.Run(task_, task_.items[questions[index]], method, &shared);
      if (result.ok()) {
        if (const absl::Status finite = CheckFinite(*result); !finite.ok()) result = finite;
      }
      absl::MutexLock lock(&mu);
      if (!result.ok()) {
        if (status.ok()) status = result.status();
        return;
      }
      results[index] = *std::move(result);
      if (on_answer_) on_answer_(options, task_.items[questions[index]], results[index]);
    }
  };
  const auto work_or_fail = [&] {
    const absl::Status caught = CatchEscapedIn(ThreadKind::kWorker, work);
    absl::MutexLock lock(&mu);
    if (status.ok()) status = caught;
  };
  std::vector<std::thread> threads;
  const int count = std::min<int>(concurrency_, static_cast<int>(questions.size()));
  for (int i = 0; i < count; ++i) threads.emplace_back(work_or_fail);
  for (std::thread& thread : threads) thread.join();
  if (!status.ok()) return status;
  return results;
}

}  // namespace c3po
