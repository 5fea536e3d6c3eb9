#ifndef C3PO_TESTS_GPU_RUNTIME_CONTRACT_H_
#define C3PO_TESTS_GPU_RUNTIME_CONTRACT_H_

#include <string>

#include "index/base/cuda/runtime.h"

namespace c3po {

// The runtime that the tests of runtime_contract.cc are about; each program that has them defines it. Null: there is
// none here, and `why` says why.
cuda::Runtime* OpenTestedRuntime(std::string* why);

}  // namespace c3po

#endif  // C3PO_TESTS_GPU_RUNTIME_CONTRACT_H_
