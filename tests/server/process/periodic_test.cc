#include "server/process/periodic.h"

#include <gtest/gtest.h>

#include <atomic>
#include <new>
#include <stdexcept>

#include "absl/synchronization/notification.h"
#include "index/base/escaped_exception.h"

namespace c3po {
namespace {

TEST(Periodic, LooksAgainAfterAnException) {
  const int64_t before = EscapedExceptions(ThreadKind::kPeriodic);
  std::atomic<int> looks{0};
  absl::Notification third;
  {
    const Periodic periodic(absl::Milliseconds(1), [&] {
      const int look = ++looks;
      if (look == 1) throw std::bad_alloc();
      if (look == 2) throw std::runtime_error("wrong");
      if (look == 3) third.Notify();
    });
    third.WaitForNotification();
  }
  EXPECT_EQ(EscapedExceptions(ThreadKind::kPeriodic), before + 2);
}

}  // namespace
}  // namespace c3po
