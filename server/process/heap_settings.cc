#include "server/process/heap_settings.h"

#include <malloc.h>

#include <cstdlib>

#include "server/process/process_usage.h"

namespace c3po {
namespace {

constexpr int64_t kGrowthBytes = int64_t{128} << 20;
constexpr int kLooks = 30;

int64_t ResidentBytes() { return ReadProcessUsage().value_or(ProcessUsage()).resident_bytes; }

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

HeapTrim::HeapTrim() : resident_(ResidentBytes()), looks_(absl::Seconds(1), [this] { Look(); }) {}

void HeapTrim::Look() {
  if (ResidentBytes() >= resident_ + kGrowthBytes) looks_left_ = kLooks;
  if (looks_left_ == 0 || looks_left_-- % 2 == 1) return;
  malloc_trim(0);
  resident_ = ResidentBytes();
}

}  // namespace c3po
