#ifndef C3PO_TESTS_CLIENT_CHILD_PROCESS_H_
#define C3PO_TESTS_CLIENT_CHILD_PROCESS_H_

#include <sys/types.h>

#include <map>
#include <string>
#include <vector>

namespace c3po {

struct ChildResult {
  int exit_code = -1;  // 128 + the signal for a child that a signal ended.
  std::string out;
  std::string err;
};

// A program run by a test, its standard streams in temporary files. Spawned, not forked: this process has gRPC threads.
class ChildProcess {
 public:
  // `environment` is added to this process's own.
  ChildProcess(const std::vector<std::string>& arguments, const std::string& input = "",
               const std::map<std::string, std::string>& environment = {});
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  void Signal(int signal);
  // What it has written to stdout so far.
  std::string OutputSoFar() const;
  ChildResult Wait();

 private:
  std::string folder_;
  pid_t pid_ = -1;
};

}  // namespace c3po

#endif  // C3PO_TESTS_CLIENT_CHILD_PROCESS_H_
