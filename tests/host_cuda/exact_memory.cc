#include "tests/host_cuda/exact_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

namespace c3po::host_cuda {

namespace {

constexpr uint8_t kUnknown = 0xff;
constexpr uint8_t kBehind = 0xa5;

// With AddressSanitizer the byte behind belongs to nobody.
#ifdef __SANITIZE_ADDRESS__
constexpr size_t kBytesBehind = 0;
#else
constexpr size_t kBytesBehind = 64;
#endif

}  // namespace

ExactMemory::ExactMemory(size_t bytes, size_t alignment) : bytes_(bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, alignment, bytes + kBytesBehind) != 0) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(memory);
  Poison();
}

ExactMemory::~ExactMemory() { std::free(data_); }

void ExactMemory::Poison() {
  std::memset(data_, kUnknown, bytes_);
  std::memset(data_ + bytes_, kBehind, kBytesBehind);
}

int ExactMemory::FirstByteBehind() const {
  for (size_t i = 0; i < kBytesBehind; ++i) {
    if (data_[bytes_ + i] != std::byte{kBehind}) return static_cast<int>(i);
  }
  return -1;
}

}  // namespace c3po::host_cuda
