#ifndef C3PO_TESTS_HOST_CUDA_BLOCK_RUN_H_
#define C3PO_TESTS_HOST_CUDA_BLOCK_RUN_H_

#include <array>
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

using BlockPlace = std::array<int, 3>;

// Runs blocks of one launch, one at a time, on the calling OS thread.
class BlockRun {
 public:
  BlockRun(const KernelLaunch& launch, StackSet stacks);
  BlockRun(const BlockRun&) = delete;
  BlockRun& operator=(const BlockRun&) = delete;
  ~BlockRun();

  // A block is begun, then run to its end, before that to its gate or not: until no thread goes on, where those wait
  // that came to WaitForPreviousKernel. Each throws KernelFault; then no other block may be run.
  void Begin(const BlockPlace& block, Order order);
  void RunToTheGate();
  void RunToTheEnd();

  // --- For the fiber that runs. ---
  void WaitForGroup(Fiber& self, Arrival& arrival);
  void MaybeYield(Fiber& self);
  void WaitAtTheGate(Fiber& self);
  bool gated() const { return gated_; }
  std::byte* shared() const { return shared_.data(); }
  int shared_bytes() const { return launch_.shared_bytes; }

 private:
  // Who of the ready ones goes on: any; the newest, so that a warp that comes from a collective runs ahead as far as it
  // can; the same, and warps come from the block's barriers, and to their first line, one by one.
  enum class Style { kAny, kNewest, kNewestByWarp };

  static void RunFiber(void* fiber);
  void Run();
  bool Complete(const Arrival& arrival, Fiber* const* group, int size);
  void SwitchFrom(Fiber& self);
  [[noreturn]] void LeaveFrom(Fiber& self);
  Fiber* TakeNext();
  void MakeReady(Fiber* const* group, int size);
  void Shuffle(size_t first, int size);  // those ready ones
  void CheckEnd() const;
  std::string Where() const;
  std::string WhoWaits() const;

  const KernelLaunch& launch_;
  const StackSet stacks_;
  ExactMemory shared_;
  std::vector<Fiber> fibers_;      // by thread
  std::vector<Fiber*> by_thread_;  // the same, as groups
  std::vector<int> arrived_;       // lanes that are at a collective of their warp
  int arrived_at_barrier_ = 0;
  int ended_ = 0;
  std::vector<Fiber*> ready_;
  bool gated_ = false;
  std::vector<Fiber*> at_the_gate_;
  Style style_ = Style::kAny;
  Order order_{0};
  Context scheduler_;
  std::exception_ptr fault_;
};

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_BLOCK_RUN_H_
