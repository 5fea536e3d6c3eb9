#ifndef C3PO_SERVER_WEIGHTS_STORED_ROWS_H_
#define C3PO_SERVER_WEIGHTS_STORED_ROWS_H_

#include <sys/stat.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/weights/checkpoint.h"

namespace c3po {

// The rows of a matrix in a checkpoint's file, read from it whenever they are asked for: a table of which little is
// asked for at a time, as of an embedding, takes no memory of the process then. A row is one pread, under a microsecond
// where the system has cached it. The file stays open: that it is renamed or removed does not matter. Thread-safe.
class StoredRows {
 public:
  // `name`: of two dimensions and of F32, F16 or BF16. NotFound, InvalidArgument: name folder and tensor; others of
  // open(2).
  static absl::StatusOr<std::unique_ptr<StoredRows>> Open(const Checkpoint& checkpoint, absl::string_view name);
  ~StoredRows();
  StoredRows(const StoredRows&) = delete;
  StoredRows& operator=(const StoredRows&) = delete;

  // Those rows, one after the other, as float32, which holds them exactly, to out [rows.size() * columns()]. Each row
  // in [0, rows()). Internal: the file cannot be read, or was written to since Open; it names the file.
  absl::Status Read(absl::Span<const int64_t> rows, float* out) const;

  int64_t rows() const { return rows_; }
  int64_t columns() const { return columns_; }

 private:
  StoredRows(std::string path, int file) : path_(std::move(path)), file_(file) {}
  absl::Status CheckUnchanged() const;

  const std::string path_;
  const int file_;
  struct stat opened_ = {};
  DType type_ = DType::kF32;
  int64_t offset_ = 0;  // of row 0 in the file, bytes
  int64_t rows_ = 0, columns_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_STORED_ROWS_H_
