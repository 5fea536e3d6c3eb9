#include "client/eval/known_questions.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

// More than one: of several texts at distance 0 an index may give any first.
constexpr uint32_t kHits = 4;

bool ReadsReferences(const EvalMethod& method) {
  if (method.optimization.use_offset()) return true;
  return method.optimization.method() != v1::METHOD_NONE && method.optimization.method() != v1::METHOD_ORACLE;
}

}  // namespace

bool IsSameText(absl::string_view prompt, absl::string_view reference, double distance) {
  return distance <= kSameTextDistanceMax ||
         absl::StripAsciiWhitespace(prompt) == absl::StripAsciiWhitespace(reference);
}

absl::StatusOr<bool> IsAmongReferences(Client& client, const std::string& collection, const std::string& prompt,
                                       const CallOptions& options) {
  v1::SearchReferencesRequest request;
  request.set_collection(collection);
  request.set_text(prompt);
  request.set_k(kHits);
  const auto response = client.SearchReferences(request, options);
  // No such collection; or a prompt that cannot be embedded, which the question's own call will tell.
  if (absl::IsNotFound(response.status()) || absl::IsInvalidArgument(response.status()) ||
      absl::IsInternal(response.status())) {
    return false;
  }
  C3PO_RETURN_IF_ERROR(response.status());
  return std::any_of(response->hits().begin(), response->hits().end(), [&](const auto& hit) {
    return IsSameText(prompt, hit.reference().sample().prompt(), hit.distance());
  });
}

std::vector<std::string> CollectionsRead(const Task& task, absl::Span<const EvalMethod> methods) {
  std::vector<std::string> collections;
  const auto add = [&](const std::string& name) {
    if (std::find(collections.begin(), collections.end(), name) == collections.end()) collections.push_back(name);
  };
  bool subsets = false;
  for (const EvalMethod& method : methods) {
    if (!ReadsReferences(method)) continue;
    if (method.optimization.has_collection()) {
      add(method.optimization.collection());
    } else if (method.collection_suffix.empty()) {
      add(task.collection);
    } else {
      subsets = true;
    }
  }
  // Without the whole there are only its parts; the largest holds what the others do.
  if (subsets && std::find(collections.begin(), collections.end(), task.collection) == collections.end()) {
    for (const EvalMethod& method : methods) {
      if (ReadsReferences(method) && !method.collection_suffix.empty()) {
        add(absl::StrCat(task.collection, method.collection_suffix));
      }
    }
  }
  return collections;
}

absl::StatusOr<std::vector<bool>> FindKnownQuestions(Client& client, const Task& task,
                                                     absl::Span<const std::string> collections, int concurrency,
                                                     const std::function<void(size_t)>& on_progress,
                                                     const CallOptions& options) {
  std::vector<bool> known(task.items.size(), false);
  absl::Mutex mu;
  size_t next = 0, done = 0;  // guarded by mu, as are known and status
  absl::Status status;
  const auto work = [&] {
    while (true) {
      size_t index = 0;
      {
        absl::MutexLock lock(&mu);
        if (!status.ok() || next == task.items.size()) return;
        index = next++;
      }
      absl::StatusOr<bool> found = false;
      for (size_t i = 0; i < collections.size() && found.ok() && !*found; ++i) {
        found = IsAmongReferences(client, collections[i], task.items[index].prompt, options);
      }
      absl::MutexLock lock(&mu);
      if (!found.ok()) {
        if (status.ok()) status = found.status();
        return;
      }
      known[index] = *found;
      on_progress(++done);
    }
  };
  const auto work_or_fail = [&] {
    const absl::Status caught = CatchEscapedIn(ThreadKind::kWorker, work);
    absl::MutexLock lock(&mu);
    if (status.ok()) status = caught;
  };
  std::vector<std::thread> threads;
  const int count = std::min<int>(concurrency, static_cast<int>(task.items.size()));
  for (int i = 0; i < count; ++i) threads.emplace_back(work_or_fail);
  for (std::thread& thread : threads) thread.join();
  if (!status.ok()) return status;
  return known;
}

size_t LeaveOut(const std::vector<bool>& known, Task* task) {
  std::vector<TaskItem> kept;
  for (size_t i = 0; i < task->items.size(); ++i) {
    if (!known[i]) kept.push_back(std::move(task->items[i]));
  }
  const size_t left_out = task->items.size() - kept.size();
  task->items = std::move(kept);
  return left_out;
}

}  // namespace c3po
