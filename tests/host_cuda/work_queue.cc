#include "tests/host_cuda/work_queue.h"

#include <algorithm>
#include <utility>

namespace c3po::host_cuda {

WorkQueue& WorkQueues::New() {
  queues_.push_back(std::make_unique<WorkQueue>());
  return *queues_.back();
}

void WorkQueues::Enqueue(WorkQueue& queue, Operation operation) {
  ComeForward();
  queue.waiting.push_back(std::move(operation));
  if (schedule_ == Schedule::kEarly) RunAll(queue);
  ComeForward();
}

// Half of the time nobody does; else any queue by one operation, and so on.
void WorkQueues::ComeForward() {
  if (schedule_ != Schedule::kMixed || queues_.empty()) return;
  while (order_.Below(2) == 0) {
    WorkQueue& queue = *queues_[static_cast<size_t>(order_.Below(static_cast<int>(queues_.size())))];
    if (!queue.waiting.empty()) RunFirst(queue);
  }
}

void WorkQueues::RunFirst(WorkQueue& queue) {
  bool started = false;
  do started = RunOneOf(queue, started);
  while (started);
}

// Whether an early kernel behind another one begins before that, which is drawn. It has to follow at once: its fibers
// are the calling OS thread's. One that has begun early itself lets none, as there are stacks for one.
bool WorkQueues::StartsEarly(const Work* next) {
  if (next == nullptr || next->start_early == nullptr || order_.Below(2) == 0) return false;
  next->start_early();
  return true;
}

bool WorkQueues::RunOneOf(WorkQueue& queue, bool started) {
  if (queue.waiting.front().after != nullptr) RunUntil(*queue.waiting.front().after);
  const Operation operation = std::move(queue.waiting.front());
  queue.waiting.pop_front();
  const Work* behind = nullptr;
  if (!queue.waiting.empty() && queue.waiting.front().after == nullptr && !queue.waiting.front().work.empty()) {
    behind = &queue.waiting.front().work.front();
  }
  for (const Work& work : operation.work) {
    if (broken_ == nullptr && operations_left_-- <= 0) broken_ = breaks_with_;
    if (broken_ != nullptr) {
      started = false;
      break;
    }
    try {
      started = work.is_kernel && !started && StartsEarly(&work == &operation.work.back() ? behind : &work + 1);
      work.run();
    } catch (...) {
      broken_ = "unspecified launch failure";
      throw;
    }
  }
  if (operation.records != nullptr) {
    operation.records->happened = true;
    operation.records->time = std::chrono::steady_clock::now();
  }
  return started;
}

void WorkQueues::RunAll(WorkQueue& queue) {
  while (!queue.waiting.empty()) RunFirst(queue);
}

void WorkQueues::RunAll() {
  for (const std::unique_ptr<WorkQueue>& queue : queues_) RunAll(*queue);
}

void WorkQueues::RunUntil(const EventRecord& record) {
  while (!record.happened) RunFirst(*record.queue);
}

bool WorkQueues::WillRead(const HostRange& range) const {
  const auto overlaps = [&](const HostRange& other) { return other.Overlaps(range); };
  return std::any_of(queues_.begin(), queues_.end(), [&](const std::unique_ptr<WorkQueue>& queue) {
    return std::any_of(queue->waiting.begin(), queue->waiting.end(), [&](const Operation& operation) {
      return std::any_of(operation.reads.begin(), operation.reads.end(), overlaps);
    });
  });
}

bool WorkQueues::WillTouch(const HostRange& range) const {
  const auto overlaps = [&](const HostRange& other) { return other.Overlaps(range); };
  return WillRead(range) || std::any_of(queues_.begin(), queues_.end(), [&](const std::unique_ptr<WorkQueue>& queue) {
           return std::any_of(queue->waiting.begin(), queue->waiting.end(), [&](const Operation& operation) {
             return std::any_of(operation.writes.begin(), operation.writes.end(), overlaps);
           });
         });
}

void WorkQueues::BreakAfter(int64_t operations, cuda::Error error) {
  operations_left_ = operations;
  breaks_with_ = error;
}

}  // namespace c3po::host_cuda
