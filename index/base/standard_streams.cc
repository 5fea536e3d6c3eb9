#include "index/base/standard_streams.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <initializer_list>

namespace c3po {

void OpenClosedStandardStreams() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) >= 0 || errno != EBADF) continue;
    const int opened = open("/dev/null", O_RDWR);  // The lowest number that is free, which is this one.
    if (opened >= 0 && opened != stream) {
      dup2(opened, stream);
      close(opened);
    }
  }
}

}  // namespace c3po
