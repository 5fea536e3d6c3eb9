#include "server/compute/cpu/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <new>
#include <numeric>
#include <set>
#include <thread>
#include <vector>

namespace c3po::cpu {
namespace {

TEST(ThreadPool, CallsEveryChunkOnceJobAfterJob) {
  ThreadPool pool(3);
  EXPECT_EQ(pool.threads(), 3);
  for (int64_t chunks = 0; chunks < 300; ++chunks) {
    std::vector<std::atomic<int>> calls(chunks);
    pool.Run(chunks, [&](int64_t i) { ++calls[i]; });
    for (const auto& count : calls) ASSERT_EQ(count.load(), 1) << chunks << " chunks";
  }
}

TEST(ThreadPool, WhatAChunkThrowsIsThrownToTheCallerWhenNoThreadIsInIt) {
  for (const int threads : {1, 4}) {
    ThreadPool pool(threads);
    for (int64_t bad = 0; bad < 20; ++bad) {
      std::atomic<int> inside{0};
      const auto work = [&](int64_t i) {
        ++inside;
        std::this_thread::sleep_for(std::chrono::microseconds(50));
        --inside;
        if (i == bad) throw std::bad_alloc();
      };
      EXPECT_THROW(pool.Run(20, work), std::bad_alloc);
      EXPECT_EQ(inside, 0);
      std::atomic<int> called{0};
      pool.Run(20, [&](int64_t) { ++called; });  // And the pool is as before.
      EXPECT_EQ(called, 20);
    }
  }
}

TEST(ThreadPool, WakesWorkersThatWentToSleep) {
  ThreadPool pool(2);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    // Two chunks that wait for each other need two threads.
    std::atomic<int> arrived{0};
    pool.Run(2, [&](int64_t) {
      ++arrived;
      while (arrived.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(arrived.load(), 2);
  }
}

int ProcessorsOfThisThread() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(sched_getaffinity(0, sizeof(set), &set), 0);
  return CPU_COUNT(&set);
}

TEST(ThreadPool, PinsItsWorkersAsFarAsProcessorsReachAndLeavesTheCallerFree) {
  const int allowed = ProcessorsOfThisThread();
  const std::thread::id caller = std::this_thread::get_id();
  for (const bool pinned : {false, true}) {
    ThreadPool pool(2, pinned);
    std::atomic<int> arrived{0}, of_worker{0}, of_caller{0};
    pool.Run(2, [&](int64_t) {
      (std::this_thread::get_id() == caller ? of_caller : of_worker) = ProcessorsOfThisThread();
      ++arrived;
      while (arrived.load() < 2) std::this_thread::yield();
    });
    EXPECT_EQ(of_caller.load(), allowed);
    EXPECT_EQ(of_worker.load(), pinned && allowed > 1 ? 1 : allowed);
  }
}

TEST(ThreadPool, ManyCallersAtOnceAndNestedCallsEachGetTheirWorkDone) {
  ThreadPool pool(3);
  std::atomic<int64_t> total{0};
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        pool.Run(7, [&](int64_t) { pool.Run(3, [&](int64_t i) { total += i; }); });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total.load(), 4 * 200 * 7 * 3);
}

// All of the pool's threads in one job, none of which ends before all have come.
void GatherAllThreads(ThreadPool& pool) {
  std::atomic<int> arrived{0};
  pool.Run(pool.threads(), [&](int64_t) {
    ++arrived;
    while (arrived.load() < pool.threads()) std::this_thread::yield();
  });
}

TEST(ThreadPool, AGuestTakesTheLastWorkersPlaceAndGivesItBack) {
  for (const int threads : {1, 2, 3, 4}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 2; ++round) {
      GatherAllThreads(pool);  // No worker still looks at chunks of an earlier job.
      std::mutex mutex;
      std::set<std::thread::id> seen;
      std::atomic<bool> inside{false}, done{false};
      std::thread guest([&] {
        const ThreadPool::Guest place(pool);
        inside = true;
        inside.notify_one();
        done.wait(false);
      });
      inside.wait(false);
      pool.Run(200, [&](int64_t) {
        std::this_thread::yield();  // Others would come, if they may.
        const std::lock_guard<std::mutex> lock(mutex);
        seen.insert(std::this_thread::get_id());
      });
      EXPECT_LE(seen.size(), static_cast<size_t>(std::max(1, threads - 1)));
      done = true;
      done.notify_one();
      guest.join();
    }
    GatherAllThreads(pool);  // Would not end if a worker stayed away.
  }
}

TEST(ThreadPool, AGuestAloneHasTheOtherWorkers) {
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    const ThreadPool::Guest guest(pool);
    const ThreadPool::Guest again(pool);  // Does nothing: it would wait for the first.
    GatherAllThreads(pool);
  }
}

TEST(ThreadPool, GuestsAreFewerThanThreadsAndWaitForEachOther) {
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    std::atomic<int> inside{0}, most{0}, entered{0};
    std::vector<std::thread> guests;
    for (int i = 0; i < 5; ++i) {
      guests.emplace_back([&] {
        for (int round = 0; round < 20; ++round) {
          const ThreadPool::Guest guest(pool);
          ++entered;
          const int now = ++inside;
          for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
          }
          std::this_thread::yield();
          pool.Run(3, [](int64_t) { std::this_thread::yield(); });
          --inside;
        }
      });
    }
    for (std::thread& guest : guests) guest.join();
    EXPECT_EQ(entered, 100);
    EXPECT_LE(most, std::max(1, threads - 1));
    GatherAllThreads(pool);
  }
}

// Or one long job of another would leave this caller alone with all of its own.
TEST(ThreadPool, ACallerTakesTheWorkersOverOnceTheyAreFree) {
  ThreadPool pool(2);
  std::atomic<int> holding{0}, arrived{0};
  std::atomic<bool> let_go{false}, returned{false};
  std::thread other([&] {
    pool.Run(2, [&](int64_t) {
      ++holding;
      while (!let_go) std::this_thread::yield();
    });
    returned = true;
  });
  while (holding < 2) std::this_thread::yield();
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> first{0}, of_worker{0};
  pool.Run(3, [&](int64_t) {
    if (first++ == 0) {  // Alone; the others need two threads.
      let_go = true;
      while (!returned) std::this_thread::yield();
      return;
    }
    if (std::this_thread::get_id() != caller) ++of_worker;
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
  other.join();
  EXPECT_EQ(of_worker, 1);
}

TEST(ThreadPool, ParallelForCoversTheRangeInWholeGrains) {
  ThreadPool::SetThreads(3);
  for (const int64_t size : {0, 1, 7, 64, 1000, 4097}) {
    std::vector<std::atomic<int>> calls(size);
    ParallelFor(size, 16, [&](int64_t begin, int64_t end) {
      EXPECT_EQ(begin % 16, 0);
      EXPECT_TRUE(end % 16 == 0 || end == size);
      for (int64_t i = begin; i < end; ++i) ++calls[i];
    });
    for (const auto& count : calls) ASSERT_EQ(count.load(), 1) << "size " << size;
  }
}

}  // namespace
}  // namespace c3po::cpu
