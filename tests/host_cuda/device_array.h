#ifndef C3PO_TESTS_HOST_CUDA_DEVICE_ARRAY_H_
#define C3PO_TESTS_HOST_CUDA_DEVICE_ARRAY_H_

#include <algorithm>
#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

#include "tests/host_cuda/exact_memory.h"
#include "tests/host_cuda/kernel_run.h"

namespace c3po::host_cuda {

// Device memory of a test that calls kernels without a runtime: exactly `size` elements, at first of bytes 0xFF (NaN),
// 256-byte aligned.
template <class T>
class DeviceArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit DeviceArray(size_t size) : size_(size), memory_(size * sizeof(T), 256) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    std::copy(values.begin(), values.end(), data());
  }

  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  size_t size() const { return size_; }

  // What it holds. Throws KernelFault where a kernel wrote behind it.
  std::vector<T> Values() const {
    if (const int behind = memory_.FirstByteBehind(); behind >= 0) {
      throw KernelFault("byte " + std::to_string(behind) + " behind a device array was written");
    }
    return std::vector<T>(data(), data() + size_);
  }

 private:
  size_t size_;
  ExactMemory memory_;
};

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_DEVICE_ARRAY_H_
