#include "client/eval/task_scorer.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/synchronization/mutex.h"

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
  std::vector<std::thread> threads;
  for (int i = 0; i < std::min<int>(concurrency_, static_cast<int>(questions.size())); ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  if (!status.ok()) return status;
  return results;
}

}  // namespace c3po
