#ifndef C3PO_TESTS_FUZZ_FUZZ_TARGET_H_
#define C3PO_TESTS_FUZZ_FUZZ_TARGET_H_

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace c3po {

// A file that lies in memory only, with a path by which this process can open it: a fuzz target runs thousands a
// second.
class MemoryFile {
 public:
  explicit MemoryFile(absl::string_view bytes) : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    if (fd_ < 0) std::abort();
    for (size_t at = 0; at < bytes.size();) {
      const ssize_t written = write(fd_, bytes.data() + at, bytes.size() - at);
      if (written <= 0) std::abort();
      at += static_cast<size_t>(written);
    }
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  std::string path() const { return absl::StrCat("/proc/self/fd/", fd_); }

 private:
  const int fd_;
};

// The entry point that libFuzzer and replay.cc call; `input` is any bytes at all.
#define C3PO_FUZZ_TARGET(input)                                             \
  static void FuzzOne(absl::string_view input);                             \
  extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) { \
    FuzzOne(absl::string_view(reinterpret_cast<const char*>(data), size));  \
    return 0;                                                               \
  }                                                                         \
  static void FuzzOne(absl::string_view input)

// What must hold whatever the input is.
#define C3PO_FUZZ_CHECK(condition)  \
  do {                              \
    if (!(condition)) std::abort(); \
  } while (false)

}  // namespace c3po

#endif  // C3PO_TESTS_FUZZ_FUZZ_TARGET_H_
