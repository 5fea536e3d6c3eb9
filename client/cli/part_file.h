#ifndef C3PO_CLIENT_CLI_PART_FILE_H_
#define C3PO_CLIENT_CLI_PART_FILE_H_

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// A file that is written piece by piece: FILE.part, which takes FILE's name once it is whole and synced. Until then a
// FILE that is there stays as it is; FILE.part is removed when it does not come to that. Errors are FileError's
// (index/base/durable_file.h). Used by one thread.
class PartFile {
 public:
  // `mode`: of a new file, less the process's umask.
  static absl::StatusOr<PartFile> Create(const std::string& file, mode_t mode);
  PartFile(PartFile&& other) noexcept;
  PartFile& operator=(PartFile&&) = delete;
  ~PartFile();

  absl::Status Append(absl::string_view bytes);
  // Nothing may be appended afterwards.
  absl::Status Finish();

 private:
  PartFile(std::string file, std::string path, int fd);

  const std::string file_, path_;
  int fd_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_PART_FILE_H_
