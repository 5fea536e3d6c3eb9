#ifndef C3PO_TESTS_HOST_CUDA_CONTEXT_H_
#define C3PO_TESTS_HOST_CUDA_CONTEXT_H_

#include <cstddef>

namespace c3po::host_cuda {

// Memory for the stack of one fiber. A page that nobody may touch lies below it, so that an overflow is a crash.
struct Stack {
  std::byte* bottom = nullptr;
  size_t bytes = 0;
};

// Stacks of the calling OS thread, kept until it ends. A page takes memory once it is touched. There are two sets, so
// that a block may wait while others run. `index` is below kStacksMax. Throws std::bad_alloc.
inline constexpr int kStacksMax = 1024;
enum class StackSet { kFirst, kSecond };
Stack StackOf(StackSet set, int index);

// A flow of control: a fiber with a stack of its own (Boost.Context), or the flow that an OS thread began with. All
// flows that switch to each other belong to one OS thread. AddressSanitizer is told of each switch.
class Context {
 public:
  Context() = default;
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // When it is first switched to, `entry(argument)` runs on `stack`. It never returns and lets no exception out: it
  // ends by LeaveTo. Nobody else uses the stack until then.
  void Begin(const Stack& stack, void (*entry)(void*), void* argument);

  // Runs `to` where it was left, or from its beginning, in the place of this flow, until somebody switches back.
  void SwitchTo(Context& to);

  // The same for the last time.
  [[noreturn]] void LeaveTo(Context& to);

  // Ends a flow that was begun and not left for the last time, from another one: no destructor runs.
  void GiveUp();

 private:
  void ArriveFrom(Context& from, void* left_at);

  void* resume_at_ = nullptr;  // an fcontext_t
  Context* goes_to_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  const void* stack_bottom_ = nullptr;  // for AddressSanitizer; of the OS thread's own flow known once it was left
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;  // AddressSanitizer's

  friend struct ContextEntry;
};

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_CONTEXT_H_
