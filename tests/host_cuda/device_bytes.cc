// Memory of the execution model: the host's own, so that AddressSanitizer sees the first byte too much.

#include <cstring>

#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/exact_memory.h"

namespace c3po::host_cuda {
namespace {

const ExactMemory& Of(const void* memory) { return *static_cast<const ExactMemory*>(memory); }

}  // namespace

DeviceBytes::DeviceBytes(size_t bytes) : bytes_(bytes) {
  auto* const memory = new ExactMemory(bytes, 256);
  memory_ = memory;
  address_ = memory->data();
}

DeviceBytes::~DeviceBytes() { delete static_cast<ExactMemory*>(memory_); }

void DeviceBytes::Write(const void* from) {
  if (bytes_ > 0) std::memcpy(address_, from, bytes_);
}

void DeviceBytes::Read(void* to) const {
  if (bytes_ > 0) std::memcpy(to, address_, bytes_);
}

int DeviceBytes::FirstByteBehind() const { return Of(memory_).FirstByteBehind(); }

}  // namespace c3po::host_cuda
