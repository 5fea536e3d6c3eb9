#include "tests/host_cuda/device_memory.h"

#include <iterator>

namespace c3po::host_cuda {

void* DeviceMemory::Allocate(int64_t bytes) {
  auto memory = std::make_unique<ExactMemory>(static_cast<size_t>(bytes), 256);
  std::byte* const begin = memory->data();
  allocations_.emplace(begin, std::move(memory));
  bytes_ += bytes;
  return begin;
}

void DeviceMemory::Free(void* begin) {
  const auto found = allocations_.find(static_cast<const std::byte*>(begin));
  if (found == allocations_.end()) throw RuntimeMisuse("free of an address that is no allocation of " + kind_);
  CheckBehind(*found->second);
  bytes_ -= static_cast<int64_t>(found->second->bytes());
  found->second->Poison();
  allocations_.erase(found);
}

const ExactMemory* DeviceMemory::Find(const void* at) const {
  const auto* const byte = static_cast<const std::byte*>(at);
  const auto after = allocations_.upper_bound(byte);
  if (after == allocations_.begin()) return nullptr;
  const ExactMemory& memory = *std::prev(after)->second;
  return byte < memory.data() + memory.bytes() ? &memory : nullptr;
}

void DeviceMemory::Check(const void* at, int64_t bytes, const char* what) const {
  if (bytes < 0) throw RuntimeMisuse(std::string(what) + " of " + std::to_string(bytes) + " bytes");
  if (bytes == 0) return;
  const ExactMemory* const memory = Find(at);
  if (memory == nullptr) throw RuntimeMisuse(std::string(what) + ": not " + kind_);
  const auto offset = static_cast<int64_t>(static_cast<const std::byte*>(at) - memory->data());
  if (offset + bytes > static_cast<int64_t>(memory->bytes())) {
    throw RuntimeMisuse(std::string(what) + " of bytes " + std::to_string(offset) + " to " +
                        std::to_string(offset + bytes) + " of an allocation of " + std::to_string(memory->bytes()));
  }
}

void DeviceMemory::CheckBehind(const ExactMemory& memory) const {
  if (const int behind = memory.FirstByteBehind(); behind >= 0) {
    throw RuntimeMisuse("byte " + std::to_string(memory.bytes() + static_cast<size_t>(behind)) + " of " + kind_ +
                        " of " + std::to_string(memory.bytes()) + " bytes was written");
  }
}

void DeviceMemory::CheckBehind() const {
  for (const auto& [begin, memory] : allocations_) CheckBehind(*memory);
}

}  // namespace c3po::host_cuda
