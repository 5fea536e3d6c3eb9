#ifndef C3PO_SERVER_COMPUTE_CPU_THREAD_POOL_H_
#define C3PO_SERVER_COMPUTE_CPU_THREAD_POOL_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace c3po::cpu {

// Runs the chunks of one job on a few threads, the caller's among them. Chunks are claimed one by one, so that a worker
// beside a busy neighbor takes fewer of them, and nobody waits for a worker that has not woken up yet. Workers spin for
// some microseconds after a job, then sleep until the next. Thread-safe: while one caller has the workers, another runs
// its chunks itself, and takes the workers over between two chunks once they are free. A chunk that calls Run again
// runs the chunks itself.
class ThreadPool {
 public:
  // `threads` counts the caller: 1 starts no worker. `pinned`: each worker stays on one of the processors that this
  // process may use, from the second on, as far as they reach; the caller, whose thread is not the pool's, is left
  // free.
  explicit ThreadPool(int threads, bool pinned = false);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls work(i) once for each i in [0, chunks), in any order, and returns when all have returned. What `work`
  // throws, such as std::bad_alloc, is thrown here once no thread is in it: the first of several, and then not all
  // chunks need have been called.
  template <typename Work>
  void Run(int64_t chunks, const Work& work) {
    RunJob(chunks, {[](const void* context, int64_t i) { (*static_cast<const Work*>(context))(i); }, &work});
  }

  // A thread that computes beside the engine, for as long as the object lives. A worker gives its place to a guest
  // after the chunk that it is in, so that no more threads than threads() compute. At most threads() - 1 guests are
  // inside at once, and one where threads() is 1; a further one waits in the constructor, first come, first served. It
  // waits for guests only, never for a caller of Run. A guest calls Run like others. Made by a guest or in a chunk, the
  // object does nothing.
  class Guest {
   public:
    explicit Guest(ThreadPool& pool);
    ~Guest();
    Guest(const Guest&) = delete;
    Guest& operator=(const Guest&) = delete;

   private:
    ThreadPool* const pool_;  // Null: does nothing.
  };

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
  bool TakeWorkers(int64_t chunks);
  // `place`: of a worker, from 0; kCaller stands down for nobody.
  bool RunOneChunk(int place);
  bool StandsDown(int place) const;
  void Work(int place);

  static constexpr int kCaller = -1;

  const int threads_;
  std::atomic<bool> busy_{false};       // A caller has the workers.
  std::atomic<int32_t> unclaimed_{0};   // Chunks of the job that no thread has taken.
  std::atomic<int32_t> unfinished_{0};  // Chunks that have not returned.
  std::atomic<bool> stop_{false};
  std::mutex failure_mutex_;
  std::exception_ptr failure_;  // Of the job; under failure_mutex_.
  Job job_{};                   // Read only by a thread that holds a chunk, hence never while it is replaced.

  std::atomic<int32_t> callers_{0};         // Threads inside Run that are neither guests nor in a chunk of another Run.
  std::atomic<int32_t> guests_{0};          // Inside.
  std::atomic<int32_t> guests_changed_{0};  // Counts arrivals and departures; wakes workers that stood down.
  std::mutex guests_mutex_;                 // Of the following.
  std::condition_variable guest_departed_;
  int64_t guests_arrived_ = 0;   // The next guest's number.
  int64_t guests_departed_ = 0;  // Guest n enters when at most guests_max - 1 of those before it are inside.

  std::vector<std::thread> workers_;  // Last: they read the members above.
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
