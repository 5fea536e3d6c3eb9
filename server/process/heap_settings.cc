#include "server/process/heap_settings.h"

#include <malloc.h>

#include <cstdlib>

namespace c3po {

void LimitHeapArenas() {
  if (std::getenv("MALLOC_ARENA_MAX") == nullptr) mallopt(M_ARENA_MAX, 2);
}

void KeepWhatAStepFrees() {
  constexpr int kBytes = 16 << 20;
  if (std::getenv("MALLOC_TRIM_THRESHOLD_") != nullptr) return;
  mallopt(M_MMAP_THRESHOLD, kBytes);
  mallopt(M_TRIM_THRESHOLD, kBytes);
}

}  // namespace c3po
