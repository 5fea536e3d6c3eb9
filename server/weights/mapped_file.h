#ifndef C3PO_SERVER_WEIGHTS_MAPPED_FILE_H_
#define C3PO_SERVER_WEIGHTS_MAPPED_FILE_H_

#include <cstddef>
#include <string>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace c3po {

// A regular file, mapped privately and read-only. A file that is shortened by another process while mapped kills this
// process (SIGBUS): model files are written by rename, never in place. Movable; immutable, hence thread-safe.
class MappedFile {
 public:
  // NotFound, PermissionDenied or another of open(2)'s errors; InvalidArgument: not a regular file. Messages name the
  // file. An empty file has no bytes.
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;

  // They stay where they are as long as the mapping, whichever object it was moved to.
  absl::Span<const std::byte> bytes() const { return bytes_; }

 private:
  explicit MappedFile(absl::Span<const std::byte> bytes) : bytes_(bytes) {}

  absl::Span<const std::byte> bytes_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_MAPPED_FILE_H_
