// Preloaded into a server (LD_PRELOAD), it sets that process's time of day apart from the machine's, by as many seconds
// as the file named in C3PO_TEST_CLOCK_SHIFT holds: an int64, little-endian, read anew each time. Steady clocks, timers
// and waits stay the kernel's, as they do when somebody sets a machine's clock.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

namespace {

const volatile int64_t* shift = nullptr;

__attribute__((constructor)) void MapShift() {
  const char* path = getenv("C3PO_TEST_CLOCK_SHIFT");
  const int fd = path == nullptr ? -1 : open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return;
  void* mapped = mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
  if (mapped != MAP_FAILED) shift = static_cast<const volatile int64_t*>(mapped);
  close(fd);
}

timespec TimeOfDay() {
  timespec now = {};
  syscall(SYS_clock_gettime, CLOCK_REALTIME, &now);
  if (shift != nullptr) now.tv_sec += *shift;
  return now;
}

}  // namespace

extern "C" int clock_gettime(clockid_t clock, timespec* now) noexcept {
  if (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE) {
    return static_cast<int>(syscall(SYS_clock_gettime, clock, now));
  }
  *now = TimeOfDay();
  return 0;
}

extern "C" int gettimeofday(timeval* __restrict now, void* __restrict /*zone*/) noexcept {
  const timespec time_of_day = TimeOfDay();
  *now = {time_of_day.tv_sec, time_of_day.tv_nsec / 1000};
  return 0;
}

extern "C" time_t time(time_t* now) noexcept {
  const time_t seconds = TimeOfDay().tv_sec;
  if (now != nullptr) *now = seconds;
  return seconds;
}
