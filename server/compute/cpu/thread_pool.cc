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

// What this thread is to the pools. A thread inside one counts once, whatever it calls there.
enum class Role { kOutside, kWorker, kCaller, kGuest };
thread_local Role role = Role::kOutside;

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

ThreadPool::ThreadPool(int threads, bool pinned) : threads_(std::max(1, threads)) {
  const std::vector<int> processors = pinned ? AllowedProcessors() : std::vector<int>();
  for (int i = 1; i < threads_; ++i) {
    workers_.emplace_back([this, i] { Work(i - 1); });
    if (i < static_cast<int>(processors.size())) Pin(workers_.back(), processors[static_cast<size_t>(i)]);
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  unclaimed_.store(-1);
  unclaimed_.notify_all();
  guests_changed_.fetch_add(1);
  guests_changed_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

// Guests take the last workers' places. Without guests callers share all workers, as they share one job after the
// other; beside guests each caller's own thread counts.
bool ThreadPool::StandsDown(int place) const {
  const int32_t guests = guests_.load(std::memory_order_acquire);
  if (place == kCaller || guests == 0) return false;
  return place >= threads_ - guests - callers_.load(std::memory_order_acquire);
}

bool ThreadPool::RunOneChunk(int place) {
  int32_t left = unclaimed_.load(std::memory_order_acquire);
  do {
    // After the load: who sees a job's chunks sees the guests that were inside when it began.
    if (left <= 0 || StandsDown(place)) return false;
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

void ThreadPool::Work(int place) {
  role = Role::kWorker;
  while (!stop_.load(std::memory_order_relaxed)) {
    const int32_t changed = guests_changed_.load(std::memory_order_acquire);
    if (StandsDown(place)) {
      // Until a guest comes or goes, as callers come and go with every job; without spinning: the processor is the
      // guest's.
      guests_changed_.wait(changed, std::memory_order_acquire);
    } else if (!RunOneChunk(place)) {
      WaitWhile(unclaimed_, 0);
    }
  }
}

bool ThreadPool::TakeWorkers(int64_t chunks) {
  if (chunks <= 1 || workers_.empty() || busy_.load(std::memory_order_relaxed)) return false;
  bool free = false;
  return busy_.compare_exchange_strong(free, true, std::memory_order_acquire);
}

void ThreadPool::RunJob(int64_t chunks, Job job) {
  struct CountedCaller {
    explicit CountedCaller(std::atomic<int32_t>& callers) : callers(role == Role::kOutside ? &callers : nullptr) {
      if (this->callers == nullptr) return;
      role = Role::kCaller;
      this->callers->fetch_add(1, std::memory_order_acq_rel);
    }
    ~CountedCaller() {
      if (callers == nullptr) return;
      callers->fetch_sub(1, std::memory_order_acq_rel);
      role = Role::kOutside;
    }
    std::atomic<int32_t>* const callers;
  };
  const CountedCaller counted(callers_);
  int64_t left = chunks;
  for (; left > 0 && !TakeWorkers(left); --left) job.call(job.context, left - 1);
  if (left == 0) return;
  job_ = job;
  unfinished_.store(static_cast<int32_t>(left), std::memory_order_relaxed);
  unclaimed_.store(static_cast<int32_t>(left));
  unclaimed_.notify_all();
  while (RunOneChunk(kCaller)) {
  }
  for (int32_t open; (open = unfinished_.load(std::memory_order_acquire)) != 0;) WaitWhile(unfinished_, open);
  std::exception_ptr failure;
  {
    const std::lock_guard<std::mutex> lock(failure_mutex_);
    failure = std::exchange(failure_, nullptr);
  }
  busy_.store(false, std::memory_order_release);
  if (failure) std::rethrow_exception(failure);
}

ThreadPool::Guest::Guest(ThreadPool& pool) : pool_(role == Role::kOutside ? &pool : nullptr) {
  if (pool_ == nullptr) return;
  std::unique_lock<std::mutex> lock(pool.guests_mutex_);
  const int64_t number = pool.guests_arrived_++, inside_max = std::max(1, pool.threads_ - 1);
  pool.guest_departed_.wait(lock, [&] { return number < pool.guests_departed_ + inside_max; });
  pool.guests_.fetch_add(1, std::memory_order_acq_rel);
  pool.guests_changed_.fetch_add(1, std::memory_order_acq_rel);
  role = Role::kGuest;
}

ThreadPool::Guest::~Guest() {
  if (pool_ == nullptr) return;
  role = Role::kOutside;
  {
    const std::lock_guard<std::mutex> lock(pool_->guests_mutex_);
    ++pool_->guests_departed_;
    pool_->guests_.fetch_sub(1, std::memory_order_acq_rel);
    pool_->guests_changed_.fetch_add(1, std::memory_order_acq_rel);
  }
  pool_->guest_departed_.notify_all();
  pool_->guests_changed_.notify_all();
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
