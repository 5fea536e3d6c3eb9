#include "tests/host_cuda/kernel_run.h"

#include <cxxabi.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

#include "tests/host_cuda/block_run.h"
#include "tests/host_cuda/collectives.h"
#include "tests/host_cuda/stream.h"

namespace c3po::host_cuda {

namespace {

std::atomic<uint64_t> seed{0};
std::atomic<uint64_t> orders_drawn{0};
std::atomic<int> runtimes{0};

int64_t BlocksOf(const KernelLaunch& launch) { return int64_t{launch.blocks[0]} * launch.blocks[1] * launch.blocks[2]; }

BlockPlace PlaceOf(const KernelLaunch& launch, int64_t block) {
  const int64_t row = block / launch.blocks[0];
  return {static_cast<int>(block % launch.blocks[0]), static_cast<int>(row % launch.blocks[1]),
          static_cast<int>(row / launch.blocks[1])};
}

Fiber& CurrentFiber() { return static_cast<Fiber&>(CurrentThread()); }

}  // namespace

constinit thread_local ThreadRun* current_thread = nullptr;

void SetSeed(uint64_t value) {
  seed = value;
  orders_drawn = 0;
}

uint64_t Seed() { return seed; }

uint64_t Order::Next() {
  uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

Order NextOrder() {
  Order of_seed(seed);
  return Order(of_seed.Next() + orders_drawn++ * 0xd1342543de82ef95ull);
}

const char* LaunchError(const KernelLaunch& launch) {
  if (launch.threads % 32 != 0) return "a block is not of whole warps";
  for (int i = 0; i < 3; ++i) {
    if (launch.blocks[i] < 1 || (i > 0 && launch.blocks[i] > 65535)) return "invalid configuration argument";
  }
  if (launch.threads < 1 || launch.threads > kThreadsMax) return "invalid configuration argument";
  if (launch.shared_bytes < 0 || launch.shared_bytes > kSharedBytesMax) return "invalid argument";
  return nullptr;
}

KernelRun::KernelRun(const KernelLaunch& launch) : launch_(launch), order_(NextOrder()) {
  if (current_thread != nullptr) Fail("a kernel launches a kernel");
}

KernelRun::~KernelRun() = default;

void KernelRun::StartOneBlock() {
  started_ = static_cast<int64_t>(order_.Next() % static_cast<uint64_t>(BlocksOf(launch_)));
  started_run_ = std::make_unique<BlockRun>(launch_, StackSet::kSecond);
  started_run_->Begin(PlaceOf(launch_, started_), Order(order_.Next()));
  started_run_->RunToTheGate();
}

void KernelRun::Finish() {
  std::vector<int64_t> blocks(static_cast<size_t>(BlocksOf(launch_)));
  std::iota(blocks.begin(), blocks.end(), 0);
  BlockRun run(launch_, StackSet::kFirst);
  for (size_t left = blocks.size(); left > 0; --left) {
    // Any of those left.
    const size_t chosen = static_cast<size_t>(order_.Next() % left);
    std::swap(blocks[chosen], blocks[left - 1]);
    const int64_t block = blocks[left - 1];
    if (block == started_) {
      started_run_->RunToTheEnd();
    } else {
      run.Begin(PlaceOf(launch_, block), Order(order_.Next()));
      run.RunToTheEnd();
    }
  }
}

cuda::Error Enqueue(cuda::Stream stream, KernelLaunch launch) {
  if (stream != nullptr) return stream->Enqueue(std::move(launch));
  if (runtimes > 0) throw KernelFault("kernel of " + launch.name + ": launched without a stream beside a runtime");
  if (const char* const error = LaunchError(launch); error != nullptr) return error;
  KernelRun(launch).Finish();
  return nullptr;
}

void CountRuntimes(int change) { runtimes += change; }

std::string KernelName(const std::type_info& args) {
  int status = 0;
  char* const name = abi::__cxa_demangle(args.name(), nullptr, nullptr, &status);
  const std::string readable = status == 0 ? name : args.name();
  std::free(name);
  return readable;
}

void FailOutsideKernel() { throw KernelFault("a function of kernels was called outside of one"); }

void Fail(const std::string& what) { throw KernelFault(what); }

void WaitForGroup(Arrival& arrival) {
  Fiber& self = CurrentFiber();
  self.run->WaitForGroup(self, arrival);
}

void MaybeYield() {
  Fiber& self = CurrentFiber();
  self.run->MaybeYield(self);
}

void* SharedBytes() { return CurrentThread().run->shared(); }

void CheckShared(const void* at, int bytes, int alignment, const char* what) {
  const BlockRun& run = *CurrentThread().run;
  const auto address = reinterpret_cast<uintptr_t>(at), begin = reinterpret_cast<uintptr_t>(run.shared());
  const auto size = static_cast<uintptr_t>(run.shared_bytes());
  if (address < begin || address > begin + size || begin + size - address < static_cast<uintptr_t>(bytes)) {
    Fail(std::string(what) + ": not within the block's " + std::to_string(size) + " bytes of shared memory");
  }
  if (address % static_cast<uintptr_t>(alignment) != 0) {
    Fail(std::string(what) + " at an address that is not " + std::to_string(alignment) + "-byte aligned");
  }
}

void BeginCopy(void* shared, const void* global, bool valid, int bytes) {
  const char* const name = bytes == 16 ? "CopyAsync16" : bytes == 8 ? "CopyAsync of 8 bytes" : "CopyAsync of 4 bytes";
  CheckShared(shared, bytes, bytes, name);
  CheckAligned(global, name, bytes);
  std::memset(shared, 0xff, static_cast<size_t>(bytes));
  Fiber& self = CurrentFiber();
  AsyncCopy copy{static_cast<std::byte*>(shared), static_cast<const std::byte*>(global), static_cast<size_t>(bytes)};
  if (!valid) copy.global = nullptr;
  if (self.run->gated() && copy.global != nullptr) {
    std::memcpy(copy.read, copy.global, copy.bytes);
    copy.global = nullptr;
  }
  self.open_copies.push_back(copy);
}

void CommitCopyGroup() {
  Fiber& self = CurrentFiber();
  self.copy_groups.push_back(std::move(self.open_copies));
  self.open_copies.clear();
}

void WaitCopyGroups(int groups_left) {
  Fiber& self = CurrentFiber();
  while (self.copy_groups.size() > static_cast<size_t>(groups_left)) {
    for (const AsyncCopy& copy : self.copy_groups.front()) {
      std::memcpy(copy.shared, copy.global != nullptr ? copy.global : copy.read, copy.bytes);
    }
    self.copy_groups.pop_front();
  }
}

void WaitForKernelBefore() {
  Fiber& self = CurrentFiber();
  self.run->WaitAtTheGate(self);
}

}  // namespace c3po::host_cuda
