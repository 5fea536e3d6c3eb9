#include "index/base/standard_streams.h"

#include <fcntl.h>
#include <unistd.h>

#include "gtest/gtest.h"

namespace c3po {
namespace {

TEST(StandardStreamsDeathTest, AFileNeverTakesTheNumberOfAStreamThatWasClosed) {
  for (int closed = 1; closed < 8; ++closed) {  // Every choice of the three.
    EXPECT_EXIT(
        {
          for (int stream = 0; stream < 3; ++stream) {
            if (closed & (1 << stream)) close(stream);
          }
          OpenClosedStandardStreams();
          const int file = open("/dev/zero", O_RDONLY);
          const bool writable = write(STDOUT_FILENO, "x", 1) == 1 && write(STDERR_FILENO, "x", 1) == 1;
          _exit(file > STDERR_FILENO && writable ? 0 : 1);
        },
        testing::ExitedWithCode(0), "")
        << closed;
  }
}

}  // namespace
}  // namespace c3po
