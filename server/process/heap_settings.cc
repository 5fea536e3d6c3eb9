#include "server/process/heap_settings.h"

#include <malloc.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>

namespace c3po {
namespace {

constexpr int64_t kUnusedBytesMax = int64_t{128} << 20;

// 0: not known.
int64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  int64_t all = 0, resident = 0;
  return file >> all >> resident ? resident * sysconf(_SC_PAGESIZE) : 0;
}

int64_t UsedHeapBytes() {
  const struct mallinfo2 heap = mallinfo2();
  return static_cast<int64_t>(heap.uordblks + heap.hblkhd);
}

}  // namespace

void LimitHeapArenas() {
  if (std::getenv("MALLOC_ARENA_MAX") == nullptr) mallopt(M_ARENA_MAX, 2);
}

void KeepWhatAStepFrees() {
  constexpr int kBytes = 16 << 20;
  if (std::getenv("MALLOC_TRIM_THRESHOLD_") != nullptr) return;
  mallopt(M_MMAP_THRESHOLD, kBytes);
  mallopt(M_TRIM_THRESHOLD, kBytes);
}

HeapTrim::HeapTrim() : looks_(absl::Seconds(1), [this] { Look(); }) {}

void HeapTrim::Remember() {
  resident_ = ResidentBytes();
  outside_heap_ = resident_ - UsedHeapBytes();
}

void HeapTrim::Look() {
  if (resident_ == 0) Remember();
  const int64_t resident = ResidentBytes();
  if (resident < resident_ + kUnusedBytesMax) return;
  if (resident - outside_heap_ - UsedHeapBytes() < kUnusedBytesMax) return;
  malloc_trim(0);
  Remember();
}

}  // namespace c3po
