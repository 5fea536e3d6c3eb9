#ifndef C3PO_SERVER_PROCESS_HEAP_SETTINGS_H_
#define C3PO_SERVER_PROCESS_HEAP_SETTINGS_H_

#include <cstdint>

#include "server/process/periodic.h"

namespace c3po {

// gRPC starts and ends many threads. An arena for each would keep what the busiest of them once needed: memory that
// looks like a leak. At most two are made from now on. MALLOC_ARENA_MAX in the environment goes first.
void LimitHeapArenas();

// Logits and activations of many sequences are some 10 MB. Given back to the system after each step, their pages are
// faulted in again in the next: they are kept from now on. MALLOC_TRIM_THRESHOLD_ in the environment goes first.
void KeepWhatAStepFrees();

// Gives heap that is not used back to the system: a flood of connections leaves hundreds of MiB of small pieces, which
// the allocator keeps otherwise. Once resident memory has grown by 128 MiB, every other second for half a minute, as a
// flood's pieces are freed later than they are taken; in ordinary service it does not grow, and nothing is done.
class HeapTrim {
 public:
  HeapTrim();

 private:
  void Look();

  // Of the thread that looks.
  int64_t resident_ = 0;  // bytes, when it last gave back
  int looks_left_ = 0;    // of the half minute
  Periodic looks_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PROCESS_HEAP_SETTINGS_H_
