#ifndef C3PO_SERVER_PROCESS_HEAP_SETTINGS_H_
#define C3PO_SERVER_PROCESS_HEAP_SETTINGS_H_

namespace c3po {

// gRPC starts and ends many threads. An arena for each would keep what the busiest of them once needed: memory that
// looks like a leak. At most two are made from now on. MALLOC_ARENA_MAX in the environment goes first.
void LimitHeapArenas();

// Logits and activations of many sequences are some 10 MB. Given back to the system after each step, their pages are
// faulted in again in the next: they are kept from now on. MALLOC_TRIM_THRESHOLD_ in the environment goes first.
void KeepWhatAStepFrees();

}  // namespace c3po

#endif  // C3PO_SERVER_PROCESS_HEAP_SETTINGS_H_
