#ifndef C3PO_TESTS_HOST_CUDA_BLOCK_RUN_H_
#define C3PO_TESTS_HOST_CUDA_BLOCK_RUN_H_

#include <cstddef>
#include <deque>
#include <exception>
#include <string>
#include <vector>

#include "tests/host_cuda/context.h"
#include "tests/host_cuda/exact_memory.h"
#include "tests/host_cuda/kernel_run.h"

namespace c3po::host_cuda {

// A thread of the block that runs, with its fiber.
struct Fiber : ThreadRun {
  Context context;
  const Arrival* waits = nullptr;  // at which collective; null: it can go on, or has ended
  bool begun = false;
  bool ended = false;
  bool waited_for_previous_kernel = false;
  std::vector<AsyncCopy> open_copies;              // not committed yet
  std::deque<std::vector<AsyncCopy>> copy_groups;  // the oldest first
};

// Runs the blocks of one launch, one at a time, on the calling OS thread.
class BlockRun {
 public:
  explicit BlockRun(const KernelLaunch& launch);
  BlockRun(const BlockRun&) = delete;
  BlockRun& operator=(const BlockRun&) = delete;
  ~BlockRun();

  // Runs one block to its end. Throws KernelFault; then no other block may be run.
  void Run(const int (&block)[3], Order order);

  // --- For the fiber that runs. ---
  void WaitForGroup(Fiber& self, Arrival& arrival);
  void MaybeYield(Fiber& self);
  std::byte* shared() const { return shared_.data(); }
  int shared_bytes() const { return launch_.shared_bytes; }

 private:
  static void RunFiber(void* fiber);
  void Begin(const int (&block)[3]);
  bool Complete(const Arrival& arrival, Fiber* const* group, int size);
  void SwitchFrom(Fiber& self);
  [[noreturn]] void LeaveFrom(Fiber& self);
  Fiber* TakeNext();
  void CheckEnd() const;
  std::string Where() const;
  std::string WhoWaits() const;

  const KernelLaunch& launch_;
  ExactMemory shared_;
  std::vector<Fiber> fibers_;      // by thread
  std::vector<Fiber*> by_thread_;  // the same, as groups
  std::vector<int> arrived_;       // lanes that are at a collective of their warp
  int arrived_at_barrier_ = 0;
  int ended_ = 0;
  std::vector<Fiber*> ready_;
  bool newest_first_ = false;  // Of the ready ones the newest goes on: a warp runs ahead as far as it can.
  Order order_{0};
  Context scheduler_;
  std::exception_ptr fault_;
};

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_BLOCK_RUN_H_
