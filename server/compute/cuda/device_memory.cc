#include "server/compute/cuda/device_memory.h"

#include <algorithm>
#include <bit>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/device_failure.h"

namespace c3po::cuda {

void Check(Error error, const char* what) {
  if (error == nullptr) return;
  NoteDeviceFailure(absl::StrCat(what, ": ", error));
  throw DeviceError(absl::StrCat("device cuda: ", what, ": ", error));
}

std::shared_ptr<DevicePool> DevicePool::Create(Runtime& runtime) {
  return std::shared_ptr<DevicePool>(new DevicePool(runtime));
}

// No piece is in use: each keeps the pool.
DevicePool::~DevicePool() {
  const absl::MutexLock lock(&mu_);
  FreeUnused();
}

int64_t DevicePool::ClassOf(int64_t bytes) {
  constexpr uint64_t kAlignment = 256;
  const auto size = static_cast<uint64_t>(std::max<int64_t>(bytes, 1));
  const uint64_t step = std::max(kAlignment, std::bit_floor(size) / 8);
  return static_cast<int64_t>((size + step - 1) / step * step);
}

std::shared_ptr<void> DevicePool::Take(int64_t bytes) {
  const int64_t size = ClassOf(bytes);
  void* data = nullptr;
  {
    const absl::MutexLock lock(&mu_);
    data = TakeLocked(size);
  }
  return {data, [pool = shared_from_this(), size](void* p) { pool->Return(p, size); }};
}

void* DevicePool::TakeLocked(int64_t size) {
  std::vector<void*>& pieces = unused_[size];
  void* data = nullptr;
  if (!pieces.empty()) {
    data = pieces.back();
    pieces.pop_back();
  } else {
    if (runtime_.Allocate(size, &data) != nullptr) {
      FreeUnused();
      if (runtime_.Allocate(size, &data) != nullptr) throw std::bad_alloc();
    }
    held_ += size;
  }
  in_use_ += size;
  return data;
}

void DevicePool::Return(void* data, int64_t size) {
  const absl::MutexLock lock(&mu_);
  unused_[size].push_back(data);
  in_use_ -= size;
}

// An error here is of work that was enqueued before, and comes out where somebody waits for that.
void DevicePool::FreeUnused() {
  for (auto& [size, pieces] : unused_) {
    for (void* piece : pieces) static_cast<void>(runtime_.Free(piece));
    held_ -= size * static_cast<int64_t>(pieces.size());
    pieces.clear();
  }
}

int64_t DevicePool::bytes_in_use() const {
  const absl::MutexLock lock(&mu_);
  return in_use_;
}

int64_t DevicePool::bytes_held() const {
  const absl::MutexLock lock(&mu_);
  return held_;
}

void* StepArena::Take(int64_t bytes) {
  constexpr int64_t kAlignment = 256;
  bytes = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  const int64_t begin = used_;
  void* data = nullptr;
  if (begin + bytes <= size_) {
    data = static_cast<char*>(data_.get()) + begin;
  } else {
    beside_.push_back(memory_->Take(bytes));
    data = beside_.back().get();
  }
  used_ = begin + bytes;
  most_ = std::max(most_, used_);
  peak_ = std::max(peak_, used_);
  return data;
}

StepArena::Scope::~Scope() {
  StepArena& arena = arena_;
  arena.used_ = used_;
  if (--arena.depth_ > 0 || arena.beside_.empty()) return;
  // The next step finds room in one piece. Without memory for it, that step takes pieces again.
  arena.beside_.clear();
  arena.data_ = nullptr;
  arena.size_ = 0;
  ++arena.generation_;
  try {
    arena.data_ = arena.memory_->Take(arena.most_);
    arena.size_ = DevicePool::ClassOf(arena.most_);
  } catch (const std::bad_alloc&) {
    // A scope may end because memory is short.
  }
}

}  // namespace c3po::cuda
