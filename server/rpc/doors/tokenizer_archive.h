#ifndef C3PO_SERVER_RPC_DOORS_TOKENIZER_ARCHIVE_H_
#define C3PO_SERVER_RPC_DOORS_TOKENIZER_ARCHIVE_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "index/base/mutex.h"

namespace c3po {

// A ZIP archive (PKWARE's APPNOTE 6.3, sections 4.3.6 to 4.3.16) of these files, by name and contents in this order,
// stored and not compressed, dated 1980-01-01. Names are ASCII without folders. InvalidArgument: more than 4 GiB.
absl::StatusOr<std::string> ZipOf(absl::Span<const std::pair<std::string, std::string>> files);

// What a gateway needs of a model folder to tokenize by itself: config.json, generation_config.json, chat templates and
// the tokenizer's files, as one ZIP archive. It is made when somebody asks, and shared by those that hold it at the
// same time; nobody holding it, it takes no memory. Thread-safe.
class TokenizerArchive {
 public:
  struct Archive {
    std::string bytes;
    std::string sha256;  // of them, lowercase hexadecimal
  };

  // Reads files; a worker's business. NotFound: the folder has no tokenizer.json. Others: see ReadWholeFile.
  absl::StatusOr<std::shared_ptr<const Archive>> Get(const std::string& folder);

 private:
  Mutex mutex_;  // Held while one is made: others want the same.
  std::weak_ptr<const Archive> made_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_TOKENIZER_ARCHIVE_H_
