#ifndef C3PO_TESTS_HOST_CUDA_KERNEL_RUN_H_
#define C3PO_TESTS_HOST_CUDA_KERNEL_RUN_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <vector>

// The execution model of CUDA on a host without a GPU, for tests of kernels (index/base/cuda/device.h).
//
// A block's threads are fibers. Between two collectives a fiber runs alone. At one it waits until its whole group (warp
// or block) has come to the same collective at the same place of the source. Blocks run one after another. Which fiber
// and which block is next, and how far one may run ahead, is drawn from a seed. So a kernel that depends on the order
// gives other results under another seed. At an atomic another fiber may go on.
//
// What is unknown on a GPU is NaN here (bytes of 0xFF): shared memory when a block starts, and the target of an
// asynchronous copy until its thread has waited for it. Shared memory has exactly the bytes launched, so that
// AddressSanitizer sees the first byte too much; without it the 64 bytes behind are looked at when the block ends.
//
// A block of an early kernel may begin before the kernel in front runs (KernelRun). No two blocks run at once
// otherwise.
//
// Not covered: memory order, caches, the proxies of asynchronous copies, blocks that wait for each other, registers and
// speed.
namespace c3po::host_cuda {

// What would be undefined on a GPU, such as a deadlock or a copy at an odd address. The text names kernel, block, who
// waits where, and the seed.
class KernelFault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The seed of all orders drawn from now on in the process; at first 0. Launches draw one after another, so a run is
// repeated by setting the seed before it.
void SetSeed(uint64_t seed);
uint64_t Seed();

// splitmix64: a stream of random numbers.
class Order {
 public:
  explicit Order(uint64_t seed) : state_(seed) {}
  uint64_t Next();
  int Below(int end) { return static_cast<int>(((Next() >> 32) * static_cast<uint64_t>(end)) >> 32); }  // 0 .. end - 1

 private:
  uint64_t state_;
};

// The order of the next launch, or of whatever else has one. Thread-safe.
Order NextOrder();

// Limits of every GPU that c3po is compiled for (sm_80, the least).
inline constexpr int kThreadsMax = 1024;
inline constexpr int kSharedBytesMax = 163 * 1024;

struct KernelLaunch {
  std::string name;
  int blocks[3] = {1, 1, 1};
  int threads = 32;
  int shared_bytes = 0;
  bool early = false;            // Each thread has to call WaitForPreviousKernel.
  std::function<void()> thread;  // what each thread runs
};

// What is wrong with a launch, as the CUDA runtime would say; null: nothing.
const char* LaunchError(const KernelLaunch& launch);

class BlockRun;

// One run of a launch without LaunchError, on one OS thread, not from within a kernel. It ends with the first
// KernelFault that it throws.
class KernelRun {
 public:
  explicit KernelRun(const KernelLaunch& launch);  // which outlives this
  ~KernelRun();
  KernelRun(const KernelRun&) = delete;
  KernelRun& operator=(const KernelRun&) = delete;

  // Called for an early kernel before the kernel in front of it runs. One block, drawn of all, runs until each thread
  // is in WaitForPreviousKernel, waits for one that is, or has ended. Its asynchronous copies read what is there now.
  void StartOneBlock();

  void Finish();  // all blocks, that one among them

 private:
  const KernelLaunch& launch_;
  Order order_;
  int64_t started_ = -1;  // which block
  std::unique_ptr<BlockRun> started_run_;
};

// --- For device.h: what a thread that runs asks. ---
struct CollectiveKind;

// A thread's part of one collective, on its stack while it waits.
struct Arrival {
  const CollectiveKind* kind;
  std::source_location place;
};

struct CollectiveKind {
  const char* name;
  bool of_block;
  void (*complete)(Arrival* const lanes[32]);  // of a warp, once all have come; null: nothing to do
};

struct AsyncCopy {
  std::byte* shared;
  const std::byte* global;  // null: zeros, or what was read
  size_t bytes;             // 16 at most
  std::byte read[16] = {};
};

struct ThreadRun {
  int thread = 0;
  int threads = 0;
  int block[3] = {};
  int blocks[3] = {};
  BlockRun* run = nullptr;
};

extern constinit thread_local ThreadRun* current_thread;

// The thread of a kernel that calls. Throws KernelFault outside of one.
[[noreturn]] void FailOutsideKernel();
inline ThreadRun& CurrentThread() {
  if (current_thread == nullptr) [[unlikely]]
    FailOutsideKernel();
  return *current_thread;
}

[[noreturn]] void Fail(const std::string& what);  // a KernelFault of the thread that runs
void WaitForGroup(Arrival& arrival);              // Returns once the whole group has come.
void MaybeYield();                                // Another thread may go on first.
void* SharedBytes();
void CheckShared(const void* at, int bytes, int alignment,
                 const char* what);  // Throws where it is not the block's own.
void BeginCopy(void* shared, const void* global, bool valid, int bytes);
void CommitCopyGroup();
void WaitCopyGroups(int groups_left);
void WaitForKernelBefore();

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_KERNEL_RUN_H_
