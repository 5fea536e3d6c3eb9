#ifndef C3PO_SERVER_PROCESS_DESCRIPTOR_LIMIT_H_
#define C3PO_SERVER_PROCESS_DESCRIPTOR_LIMIT_H_

#include <cstdint>

namespace c3po {

// The soft limit of open file descriptors; 0: it cannot be read.
int64_t DescriptorLimit();

// Raises the soft limit of open file descriptors towards the hard one, up to 65,536: each connection takes one, and
// many systems begin with 1,024. Returns the limit that is in force then.
int64_t RaiseDescriptorLimit();

}  // namespace c3po

#endif  // C3PO_SERVER_PROCESS_DESCRIPTOR_LIMIT_H_
