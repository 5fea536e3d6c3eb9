#include "server/compute/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cstdlib>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "index/base/cgroup_limits.h"

namespace c3po::cpu {
namespace {

constexpr int kSpins = 2000;  // Some 30 microseconds: the gap between two products of one layer.

std::atomic<int> configured_threads{0};
std::atomic<bool> configured_pinned{false};

void Pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

int DefaultThreads() {
  const char* text = std::getenv("OMP_NUM_THREADS");
  const int named = text == nullptr ? 0 : std::atoi(text);
  return named > 0 ? named : UsableProcessors(ReadCgroupLimits());
}

// The processors that this process may run on, in order.
std::vector<int> AllowedProcessors() {
  std::vector<int> allowed;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return allowed;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) allowed.push_back(i);
  }
  return allowed;
}

// A worker that cannot be pinned runs where it may: slower perhaps, not wrong.
void Pin(std::thread& thread, int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof(set), &set);
}

// Waits, first spinning, then asleep, until `value` is something else.
void WaitWhile(const std::atomic<int32_t>& value, int32_t unwanted) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != unwanted) return;
    Pause();
  }
  value.wait(unwanted, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads, bool pinned) {
  const std::vector<int> processors = pinned ? AllowedProcessors() : std::vector<int>();
  for (int i = 1; i < threads; ++i) {
    workers_.emplace_back([this] { Work(); });
    if (i < static_cast<int>(processors.size())) Pin(workers_.back(), processors[static_cast<size_t>(i)]);
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  unclaimed_.store(-1);
  unclaimed_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

bool ThreadPool::RunOneChunk() {
  int32_t left = unclaimed_.load(std::memory_order_acquire);
  do {
    if (left <= 0) return false;
  } while (!unclaimed_.compare_exchange_weak(left, left - 1, std::memory_order_acq_rel));
  try {
    job_.call(job_.context, left - 1);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(failure_mutex_);
    if (!failure_) failure_ = std::current_exception();
  }
  if (unfinished_.fetch_sub(1, std::memory_order_acq_rel) == 1) unfinished_.notify_one();
  return true;
}

void ThreadPool::Work() {
  while (!stop_.load(std::memory_order_relaxed)) {
    if (!RunOneChunk()) WaitWhile(unclaimed_, 0);
  }
}

void ThreadPool::RunJob(int64_t chunks, Job job) {
  bool free = false;
  if (chunks <= 1 || workers_.empty() || !busy_.compare_exchange_strong(free, true, std::memory_order_acquire)) {
    for (int64_t i = 0; i < chunks; ++i) job.call(job.context, i);
    return;
  }
  job_ = job;
  unfinished_.store(static_cast<int32_t>(chunks), std::memory_order_relaxed);
  unclaimed_.store(static_cast<int32_t>(chunks));
  unclaimed_.notify_all();
  while (RunOneChunk()) {
  }
  for (int32_t left; (left = unfinished_.load(std::memory_order_acquire)) != 0;) WaitWhile(unfinished_, left);
  std::exception_ptr failure;
  {
    const std::lock_guard<std::mutex> lock(failure_mutex_);
    failure = std::exchange(failure_, nullptr);
  }
  busy_.store(false, std::memory_order_release);
  if (failure) std::rethrow_exception(failure);
}

void ThreadPool::SetThreads(int threads, bool pinned) {
  configured_threads.store(threads);
  configured_pinned.store(pinned);
}

ThreadPool& ThreadPool::Shared() {
  // Never destroyed: a thread may still be in a product when the process ends.
  static ThreadPool* const pool = new ThreadPool(
      configured_threads.load() > 0 ? configured_threads.load() : DefaultThreads(), configured_pinned.load());
  return *pool;
}

}  // namespace c3po::cpu
