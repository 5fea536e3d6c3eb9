#ifndef C3PO_TESTS_HOST_CUDA_WORK_QUEUE_H_
#define C3PO_TESTS_HOST_CUDA_WORK_QUEUE_H_

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "index/base/cuda/runtime.h"
#include "tests/host_cuda/kernel_run.h"

// The streams' work of the host runtime, and the order in which it runs.
namespace c3po::host_cuda {

struct WorkQueue;

// One Record of an event.
struct EventRecord {
  WorkQueue* queue = nullptr;  // that comes to it
  bool happened = false;
  std::chrono::steady_clock::time_point time;
};

struct HostRange {
  const std::byte* begin = nullptr;
  int64_t bytes = 0;
  bool Overlaps(const HostRange& other) const {
    return bytes > 0 && other.bytes > 0 && begin < other.begin + other.bytes && other.begin < begin + bytes;
  }
};

struct Work {
  explicit Work(std::function<void()> runs) : run(std::move(runs)) {}

  std::function<void()> run;
  bool is_kernel = false;
  std::function<void()> start_early;  // of an early kernel: may be called before the kernel in front runs; null: none
};

struct Operation {
  std::vector<Work> work;                // in order; of a graph each node's
  std::shared_ptr<EventRecord> after;    // runs once that has happened; null: at any time
  std::shared_ptr<EventRecord> records;  // happens when it has run
  std::vector<HostRange> reads, writes;  // of host memory
};

struct WorkQueue {
  std::deque<Operation> waiting;
};

class WorkQueues {
 public:
  enum class Schedule { kEarly, kLate, kMixed };

  WorkQueues(Schedule schedule, Order order) : schedule_(schedule), order_(order) {}

  WorkQueue& New();
  // Other queues may come forward before and after, and this one with them. KernelFault comes from whatever ran.
  void Enqueue(WorkQueue& queue, Operation operation);
  void RunAll(WorkQueue& queue);
  void RunAll();
  void RunUntil(const EventRecord& record);

  // Whether work that has not run is to read, or to touch, `range` of host memory.
  bool WillRead(const HostRange& range) const;
  bool WillTouch(const HostRange& range) const;

  // See HostRuntime::BreakAfter. Once broken, no work has an effect.
  void BreakAfter(int64_t operations, cuda::Error error);
  cuda::Error broken() const { return broken_; }

 private:
  void RunFirst(WorkQueue& queue);  // and what it waits for
  bool RunOneOf(WorkQueue& queue,
                bool started);  // the first; `started`: early; true: so has the next one, which follows
  bool StartsEarly(const Work* next);
  void ComeForward();

  const Schedule schedule_;
  Order order_;
  std::vector<std::unique_ptr<WorkQueue>> queues_;
  int64_t operations_left_ = INT64_MAX;
  cuda::Error breaks_with_ = nullptr;
  cuda::Error broken_ = nullptr;
};

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_WORK_QUEUE_H_
