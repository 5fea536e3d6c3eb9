#ifndef C3PO_SERVER_TYPES_KV_RUN_H_
#define C3PO_SERVER_TYPES_KV_RUN_H_

#include <cstdint>

namespace c3po {

// Where the keys and values of consecutive positions of a sequence lie: `length` slots of the model's cache from `slot`
// on. A sequence is a list of runs in the order of its positions. Several sequences may name the same slots, up to any
// position: a shared beginning is read where it lies.
struct KvRun {
  int64_t slot = 0;
  int64_t length = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TYPES_KV_RUN_H_
