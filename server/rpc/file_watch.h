#ifndef C3PO_SERVER_RPC_FILE_WATCH_H_
#define C3PO_SERVER_RPC_FILE_WATCH_H_

#include <functional>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace c3po {

// Calls `look` every so often on a thread of its own, for files that may be replaced while the server runs. The
// destructor returns once `look` is not running and will not run again.
class FileWatch {
 public:
  FileWatch(absl::Duration every, std::function<void()> look);
  ~FileWatch();
  FileWatch(const FileWatch&) = delete;
  FileWatch& operator=(const FileWatch&) = delete;

 private:
  void Run();

  const absl::Duration every_;
  const std::function<void()> look_;
  absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_FILE_WATCH_H_
