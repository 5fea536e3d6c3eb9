#include "tests/host_cuda/context.h"

#include <sys/mman.h>
#include <unistd.h>

#include <boost/context/detail/fcontext.hpp>
#include <cstdlib>
#include <memory>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#define C3PO_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define C3PO_ADDRESS_SANITIZER 1
#endif
#endif

#ifdef C3PO_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace c3po::host_cuda {

namespace {

// Instrumented frames are several times as large.
#ifdef C3PO_ADDRESS_SANITIZER
constexpr size_t kStackBytes = 512 * 1024;
#else
constexpr size_t kStackBytes = 128 * 1024;
#endif

// The stacks of all fibers begin at other cache lines of their page, or they would evict each other from the caches.
constexpr size_t kColorBytes = 5 * 64;
constexpr int kColors = 12;

class StackPool {
 public:
  StackPool() : page_(static_cast<size_t>(sysconf(_SC_PAGESIZE))) {
    void* const memory =
        mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<std::byte*>(memory);
    for (int i = 0; i < kStacksMax; ++i) {
      if (mprotect(memory_ + static_cast<size_t>(i) * stride(), page_, PROT_NONE) != 0) throw std::bad_alloc();
    }
  }
  ~StackPool() { munmap(memory_, bytes()); }
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  Stack At(int index) const {
    const size_t color = static_cast<size_t>(index % kColors) * kColorBytes;
    return {memory_ + static_cast<size_t>(index) * stride() + page_, kStackBytes - color};
  }

 private:
  size_t stride() const { return page_ + kStackBytes; }
  size_t bytes() const { return kStacksMax * stride(); }

  size_t page_;
  std::byte* memory_ = nullptr;
};

}  // namespace

Stack StackOf(StackSet set, int index) {
  static thread_local const StackPool first;
  if (set == StackSet::kFirst) return first.At(index);
  static thread_local const StackPool second;
  return second.At(index);
}

struct ContextEntry {
  static void Run(boost::context::detail::transfer_t transfer) {
    Context& from = *static_cast<Context*>(transfer.data);
    Context& self = *from.goes_to_;
    self.ArriveFrom(from, transfer.fctx);
    self.entry_(self.argument_);
    std::abort();
  }
};

void Context::Begin(const Stack& stack, void (*entry)(void*), void* argument) {
  stack_bottom_ = stack.bottom;
  stack_bytes_ = stack.bytes;
  fake_stack_ = nullptr;
  entry_ = entry;
  argument_ = argument;
  resume_at_ = boost::context::detail::make_fcontext(stack.bottom + stack.bytes, stack.bytes, &ContextEntry::Run);
}

void Context::SwitchTo(Context& to) {
  goes_to_ = &to;
#ifdef C3PO_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(&fake_stack_, to.stack_bottom_, to.stack_bytes_);
#endif
  const boost::context::detail::transfer_t back = boost::context::detail::jump_fcontext(to.resume_at_, this);
  ArriveFrom(*static_cast<Context*>(back.data), back.fctx);
}

void Context::LeaveTo(Context& to) {
  goes_to_ = &to;
#ifdef C3PO_ADDRESS_SANITIZER
  __sanitizer_start_switch_fiber(nullptr, to.stack_bottom_, to.stack_bytes_);
#endif
  boost::context::detail::jump_fcontext(to.resume_at_, this);
  std::abort();
}

void Context::GiveUp() {
#ifdef C3PO_ADDRESS_SANITIZER
  __asan_unpoison_memory_region(stack_bottom_, stack_bytes_);
#endif
}

void Context::ArriveFrom(Context& from, void* left_at) {
  from.resume_at_ = left_at;
#ifdef C3PO_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(fake_stack_, &from.stack_bottom_, &from.stack_bytes_);
#endif
}

}  // namespace c3po::host_cuda
