#ifndef C3PO_TESTS_HOST_CUDA_DEVICE_MEMORY_H_
#define C3PO_TESTS_HOST_CUDA_DEVICE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>

#include "tests/host_cuda/exact_memory.h"

namespace c3po::host_cuda {

// A use of the runtime that a GPU would not report, and get wrong.
class RuntimeMisuse : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

// The allocations of one kind of memory, each of exactly its bytes, at first of bytes 0xFF (NaN), 256-byte aligned.
class DeviceMemory {
 public:
  explicit DeviceMemory(std::string kind) : kind_(std::move(kind)) {}

  void* Allocate(int64_t bytes);
  void Free(
      void* begin);  // Throws RuntimeMisuse: not the beginning of an allocation, or something was written behind it.

  // Whether `at` lies in an allocation.
  bool Has(const void* at) const { return Find(at) != nullptr; }
  // Throws RuntimeMisuse unless [at, at + bytes) lies in one allocation.
  void Check(const void* at, int64_t bytes, const char* what) const;
  void CheckBehind() const;  // Throws RuntimeMisuse where something was written behind any of them.

  const ExactMemory* Find(const void* at) const;
  int64_t bytes() const { return bytes_; }
  size_t size() const { return allocations_.size(); }

 private:
  void CheckBehind(const ExactMemory& memory) const;

  const std::string kind_;
  std::map<const std::byte*, std::unique_ptr<ExactMemory>> allocations_;  // by their beginning
  int64_t bytes_ = 0;
};

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_DEVICE_MEMORY_H_
