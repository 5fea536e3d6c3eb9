// Tells ThreadSanitizer about absl::Mutex and absl::CondVar. The system's Abseil is built without it, so that what a
// mutex guards would look like a race. Linked into every executable of a thread-sanitized build, these definitions come
// before the library's and call those, which dlsym finds behind them.
//
// Between pre_unlock and post_unlock, and between pre_lock and post_lock, ThreadSanitizer looks away: there Abseil
// evaluates conditions, those of other waiting threads included.

#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include <cstdio>
#include <cstdlib>

#include "absl/synchronization/mutex.h"

namespace absl {
namespace {

// Member functions are called as functions whose first argument is the object, as the platform's ABI has it.
template <typename Result, typename... Arguments>
class Real {
 public:
  explicit Real(const char* name) : function_(reinterpret_cast<Function>(dlsym(RTLD_NEXT, name))) {
    if (function_ != nullptr) return;
    std::fprintf(stderr, "no %s: another version of Abseil?\n", name);
    std::abort();
  }
  Result operator()(Arguments... arguments) const { return function_(arguments...); }

 private:
  using Function = Result (*)(Arguments...);
  Function function_;
};

constexpr unsigned kRead = __tsan_mutex_read_lock;

template <typename Call>
void Locking(Mutex* mu, unsigned flags, const Call& call) {
  __tsan_mutex_pre_lock(mu, flags);
  call();
  __tsan_mutex_post_lock(mu, flags, 0);
}

template <typename Call>
void Unlocking(Mutex* mu, unsigned flags, const Call& call) {
  __tsan_mutex_pre_unlock(mu, flags);
  call();
  __tsan_mutex_post_unlock(mu, flags);
}

thread_local bool waiting = false;

// What gives the mutex back for a while. One of these calls another one: the outermost tells.
template <typename Call>
auto Waiting(Mutex* mu, const Call& call) {
  if (waiting) return call();
  waiting = true;
  __tsan_mutex_pre_unlock(mu, 0);
  const auto result = call();
  __tsan_mutex_post_unlock(mu, 0);
  __tsan_mutex_pre_lock(mu, 0);
  __tsan_mutex_post_lock(mu, 0, 0);
  waiting = false;
  return result;
}

}  // namespace

#define C3PO_ABSL(name) "_ZN4absl7debian3" name

void Mutex::Lock() {
  static const Real<void, Mutex*> real(C3PO_ABSL("5Mutex4LockEv"));
  Locking(this, 0, [&] { real(this); });
}

void Mutex::Unlock() {
  static const Real<void, Mutex*> real(C3PO_ABSL("5Mutex6UnlockEv"));
  Unlocking(this, 0, [&] { real(this); });
}

bool Mutex::TryLock() {
  static const Real<bool, Mutex*> real(C3PO_ABSL("5Mutex7TryLockEv"));
  __tsan_mutex_pre_lock(this, __tsan_mutex_try_lock);
  const bool locked = real(this);
  __tsan_mutex_post_lock(this, __tsan_mutex_try_lock | (locked ? 0 : __tsan_mutex_try_lock_failed), 0);
  return locked;
}

void Mutex::ReaderLock() {
  static const Real<void, Mutex*> real(C3PO_ABSL("5Mutex10ReaderLockEv"));
  Locking(this, kRead, [&] { real(this); });
}

void Mutex::ReaderUnlock() {
  static const Real<void, Mutex*> real(C3PO_ABSL("5Mutex12ReaderUnlockEv"));
  Unlocking(this, kRead, [&] { real(this); });
}

void Mutex::LockWhen(const Condition& condition) {
  static const Real<void, Mutex*, const Condition&> real(C3PO_ABSL("5Mutex8LockWhenERKNS0_9ConditionE"));
  Locking(this, 0, [&] { real(this, condition); });
}

void Mutex::Await(const Condition& condition) {
  static const Real<void, Mutex*, const Condition&> real(C3PO_ABSL("5Mutex5AwaitERKNS0_9ConditionE"));
  Waiting(this, [&] { return real(this, condition), true; });
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static const Real<bool, Mutex*, const Condition&, Duration> real(
      C3PO_ABSL("5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE"));
  return Waiting(this, [&] { return real(this, condition, timeout); });
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static const Real<bool, Mutex*, const Condition&, Time> real(
      C3PO_ABSL("5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE"));
  return Waiting(this, [&] { return real(this, condition, deadline); });
}

void CondVar::Wait(Mutex* mu) {
  static const Real<void, CondVar*, Mutex*> real(C3PO_ABSL("7CondVar4WaitEPNS0_5MutexE"));
  Waiting(mu, [&] { return real(this, mu), true; });
}

bool CondVar::WaitWithTimeout(Mutex* mu, Duration timeout) {
  static const Real<bool, CondVar*, Mutex*, Duration> real(
      C3PO_ABSL("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE"));
  return Waiting(mu, [&] { return real(this, mu, timeout); });
}

bool CondVar::WaitWithDeadline(Mutex* mu, Time deadline) {
  static const Real<bool, CondVar*, Mutex*, Time> real(C3PO_ABSL("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE"));
  return Waiting(mu, [&] { return real(this, mu, deadline); });
}

}  // namespace absl
