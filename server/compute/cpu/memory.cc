#include "server/compute/cpu/memory.h"

#include <algorithm>
#include <new>
#include <utility>

namespace c3po::cpu {

std::shared_ptr<void> AllocateUncounted(int64_t bytes) {
  constexpr std::align_val_t kAlignment{64};
  void* const data = ::operator new(static_cast<size_t>(std::max<int64_t>(bytes, 1)), kAlignment);
  return {data, [](void* p) { ::operator delete(p, kAlignment); }};
}

void HeldMemory::Add(int64_t bytes) {
  const int64_t now = now_ += bytes;
  int64_t most = most_;
  while (now > most && !most_.compare_exchange_weak(most, now)) {
  }
}

std::shared_ptr<void> AllocateBytes(int64_t bytes) {
  std::shared_ptr<void> memory = AllocateUncounted(bytes);
  HeldMemory::Add(bytes);
  void* const data = memory.get();
  return {data, [memory = std::move(memory), bytes](void*) mutable {
            memory.reset();
            HeldMemory::Add(-bytes);
          }};
}

void* Arena::Take(int64_t bytes) {
  constexpr int64_t kAlignment = 64, kLeast = int64_t{1} << 20;
  bytes = (std::max<int64_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
  while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].size) {
    ++block_;
    used_ = 0;
  }
  if (block_ == blocks_.size()) {
    const int64_t size = std::max(bytes, kLeast);
    blocks_.push_back({AllocateUncounted(size), size});
    bytes_ += size;
  }
  void* const taken = static_cast<char*>(blocks_[block_].data.get()) + used_;
  used_ += bytes;
  taken_ += bytes;
  HeldMemory::Add(bytes);
  return taken;
}

Arena::Scope::~Scope() {
  arena_.block_ = block_;
  arena_.used_ = used_;
  HeldMemory::Add(taken_ - arena_.taken_);
  arena_.taken_ = taken_;
  if (--arena_.depth_ == 0) arena_.Tidy();
}

// Nothing is in use: blocks become one, so that the next time there is no rest at a block's end.
void Arena::Tidy() {
  block_ = 0;
  used_ = 0;
  if (blocks_.size() < 2 && bytes_ <= kept_max_) return;
  const int64_t size = std::min(bytes_, kept_max_);
  blocks_.clear();
  bytes_ = 0;
  if (size == 0) return;
  try {
    blocks_.push_back({AllocateUncounted(size), size});
    bytes_ = size;
  } catch (const std::bad_alloc&) {
    // A scope may end because memory is short, and must not throw then. The next Take asks for memory itself.
  }
}

}  // namespace c3po::cpu
