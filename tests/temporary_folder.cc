// A temporary folder for each test process, so that tests that write files of the same name can run side by side:
// testing::TempDir() takes it from TEST_TMPDIR. Part of every target of c3po_test; removed when the process ends.

#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>

namespace {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    const char* parent = getenv("TEST_TMPDIR");
    path_ = std::string(parent == nullptr || *parent == '\0' ? "/tmp" : parent) + "/c3po_test_XXXXXX";
    if (mkdtemp(path_.data()) == nullptr) {
      std::perror(path_.c_str());
      _exit(1);
    }
    setenv("TEST_TMPDIR", path_.c_str(), 1);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (getpid() == owner_) std::filesystem::remove_all(path_, ignored);
  }

 private:
  std::string path_;
  const pid_t owner_ = getpid();  // A child by fork must not remove what its parent still uses.
};

const TemporaryFolder folder;

}  // namespace
