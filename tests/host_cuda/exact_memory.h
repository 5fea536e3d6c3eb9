#ifndef C3PO_TESTS_HOST_CUDA_EXACT_MEMORY_H_
#define C3PO_TESTS_HOST_CUDA_EXACT_MEMORY_H_

#include <cstddef>

namespace c3po::host_cuda {

// Memory of exactly `bytes`, filled with 0xFF: NaN in every float type. With AddressSanitizer the first byte too much
// is reported where it is touched; without, writes into the 64 bytes behind are found by FirstByteBehind.
class ExactMemory {
 public:
  ExactMemory(size_t bytes, size_t alignment);  // Alignment: a power of two, at least 8. Throws std::bad_alloc.
  ~ExactMemory();
  ExactMemory(const ExactMemory&) = delete;
  ExactMemory& operator=(const ExactMemory&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  void Poison();                // fills it again
  int FirstByteBehind() const;  // that was written, from 0; -1: none was

 private:
  std::byte* data_ = nullptr;
  size_t bytes_;
};

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_EXACT_MEMORY_H_
