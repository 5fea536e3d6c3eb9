#ifndef C3PO_SERVER_QUANTIZE_PARTIAL_FOLDER_H_
#define C3PO_SERVER_QUANTIZE_PARTIAL_FOLDER_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace c3po {

// A folder in the making, beside the one that it will be: PATH.partial-XXXXXX. It is removed with the object, unless it
// was published. Errors name the path: those of FileError.
class PartialFolder {
 public:
  // AlreadyExists: something is at `path`.
  static absl::StatusOr<std::unique_ptr<PartialFolder>> Create(const std::string& path);
  ~PartialFolder();
  PartialFolder(const PartialFolder&) = delete;
  PartialFolder& operator=(const PartialFolder&) = delete;

  // Gives it its name, where nothing else got there meanwhile, and syncs its names.
  absl::Status Publish();
  const std::string& partial_path() const { return partial_path_; }

 private:
  PartialFolder(std::string path, std::string partial_path);

  const std::string path_, partial_path_;
  bool published_ = false;
};

// What a model folder holds beside config.json and its weights, as paths below it, sorted: tokenizer, generation
// settings, chat templates, in folders too. Weights are *.safetensors and their index, and those of other programs
// (*.bin, *.gguf, *.h5, *.msgpack, *.onnx, *.pt, *.pth); names that begin with a dot are passed over. InvalidArgument
// names what is neither a file nor a folder.
absl::StatusOr<std::vector<std::string>> FilesBesideWeights(const std::string& folder);

// Copies a file's bytes, behind a link or not, and makes the folders that `to` lies in.
absl::Status CopyWholeFile(const std::string& from, const std::string& to);

}  // namespace c3po

#endif  // C3PO_SERVER_QUANTIZE_PARTIAL_FOLDER_H_
