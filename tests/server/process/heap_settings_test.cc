#include "server/process/heap_settings.h"

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "gtest/gtest.h"

namespace c3po {
namespace {

int64_t ResidentMib() {
  std::ifstream file("/proc/self/statm");
  int64_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * sysconf(_SC_PAGESIZE) >> 20;
}

TEST(HeapTrim, GivesBackWhatAFloodOfSmallPiecesLeft) {
#ifdef C3PO_SANITIZED
  GTEST_SKIP() << "a sanitizer's allocator keeps what it likes";
#endif
  const HeapTrim trim;
  absl::SleepFor(absl::Milliseconds(1500));  // It has looked once.
  const int64_t before = ResidentMib();
  std::vector<std::unique_ptr<char[]>> pieces;
  for (int i = 0; i < 400000; ++i) {
    pieces.push_back(std::make_unique<char[]>(1000));
    memset(pieces.back().get(), 1, 1000);
  }
  absl::SleepFor(absl::Milliseconds(1500));  // It has looked while all of them were in use.
  ASSERT_GT(ResidentMib(), before + 300);
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (i % 1000 != 999) pieces[i] = nullptr;  // What is left keeps the heap from shrinking at its end.
  }
  for (int i = 0; i < 600 && ResidentMib() > before + 100; ++i) absl::SleepFor(absl::Milliseconds(50));
  EXPECT_LE(ResidentMib(), before + 100);
}

}  // namespace
}  // namespace c3po
