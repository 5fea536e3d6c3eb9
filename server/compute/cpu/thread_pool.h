#ifndef C3PO_SERVER_COMPUTE_CPU_THREAD_POOL_H_
#define C3PO_SERVER_COMPUTE_CPU_THREAD_POOL_H_

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace c3po::cpu {

// Runs the chunks of one job on a few threads, the caller's among them. Chunks are claimed one by one, so that a worker
// beside a busy neighbor takes fewer of them, and nobody waits for a worker that has not woken up yet. Workers spin for
// some microseconds after a job, then sleep until the next. Thread-safe: while one caller has the workers, others run
// their chunks themselves, and so does a chunk that calls Run again.
class ThreadPool {
 public:
  // `threads` counts the caller: 1 starts no worker. `pinned`: each worker stays on one of the processors that this
  // process may use, from the second on, as far as they reach; the caller, whose thread is not the pool's, is left
  // free.
  explicit ThreadPool(int threads, bool pinned = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(i) once for each i in [0, chunks), in any order, and returns when all have returned. What `work`
  // throws, such as std::bad_alloc, is thrown here once no thread is in it: the first of several, and then not all
  // chunks need have been called.
  template <typename Work>
  void Run(int64_t chunks, const Work& work) {
    RunJob(chunks, {[](const void* context, int64_t i) { (*static_cast<const Work*>(context))(i); }, &work});
  }

  // The process's pool, made on first use: SetThreads' number, else OMP_NUM_THREADS, else one for each processor that
  // the process may use (UsableProcessors: affinity and the control group's quota).
  static ThreadPool& Shared();
  // Before the first use of Shared(); later calls change nothing. 0: as above.
  static void SetThreads(int threads, bool pinned = false);

 private:
  struct Job {
    void (*call)(const void* context, int64_t chunk);
    const void* context;
  };

  void RunJob(int64_t chunks, Job job);
  bool RunOneChunk();
  void Work();

  std::atomic<bool> busy_{false};       // A caller has the workers.
  std::atomic<int32_t> unclaimed_{0};   // Chunks of the job that no thread has taken.
  std::atomic<int32_t> unfinished_{0};  // Chunks that have not returned.
  std::atomic<bool> stop_{false};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;  // Of the job; under failure_mutex_.
  Job job_{};                   // Read only by a thread that holds a chunk, hence never while it is replaced.
  std::vector<std::thread> workers_;
};

// Splits [0, size) into ranges, enough for threads of unequal speed, each of at least `grain` elements and a multiple
// of it but for the last, and calls work(begin, end) for each on the shared pool.
template <typename Work>
void ParallelFor(int64_t size, int64_t grain, const Work& work) {
  if (size <= 0) return;
  ThreadPool& pool = ThreadPool::Shared();
  const int64_t grains = (size + grain - 1) / grain;
  const int64_t chunks = pool.threads() == 1 ? 1 : (grains < 4 * pool.threads() ? grains : 4 * pool.threads());
  if (chunks == 1) return work(int64_t{0}, size);
  pool.Run(chunks, [&](int64_t i) {
    const int64_t begin = grains * i / chunks * grain, end = grains * (i + 1) / chunks * grain;
    work(begin, end < size ? end : size);
  });
}

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_THREAD_POOL_H_
