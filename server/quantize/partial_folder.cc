#include "server/quantize/partial_folder.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

namespace fs = std::filesystem;

constexpr int kLevelsMax = 8;                        // Of folders.
constexpr int64_t kFileBytesMax = int64_t{1} << 30;  // Of a tokenizer, say.

bool IsWeights(const std::string& name) {
  for (const char* ending : {".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".gguf", ".h5",
                             ".msgpack", ".onnx", ".pt", ".pth"}) {
    if (absl::EndsWith(name, ending)) return true;
  }
  return false;
}

absl::Status AlreadyThere(const std::string& path) {
  return absl::AlreadyExistsError(absl::StrCat(path, ": exists already; a folder is written anew, never over another"));
}

// Adds what lies in `folder`, itself `below` the model's.
absl::Status AddFiles(const fs::path& folder, const fs::path& below, std::vector<std::string>& files) {
  if (std::distance(below.begin(), below.end()) > kLevelsMax) {  // Such as a link to a folder above.
    return absl::InvalidArgumentError(absl::StrCat((folder / below).string(), ": nests too deeply"));
  }
  std::error_code error;
  fs::directory_iterator entries(folder / below, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    const fs::path path = below / name;
    if (name.front() == '.' || IsWeights(name) || path == "config.json") continue;
    struct stat info;
    if (stat(entries->path().c_str(), &info) != 0) return FileError(entries->path().string(), "cannot read", errno);
    if (S_ISDIR(info.st_mode)) {
      C3PO_RETURN_IF_ERROR(AddFiles(folder, path, files));
    } else if (S_ISREG(info.st_mode)) {
      files.push_back(path.string());
    } else {
      return NotRegularFile(entries->path().string(), info.st_mode);
    }
  }
  if (error) return FileError((folder / below).string(), "cannot read", error.value());
  return absl::OkStatus();
}

absl::Status SyncFolder(const std::string& folder) { return SyncFolderOf(folder + "/."); }

}  // namespace

PartialFolder::PartialFolder(std::string path, std::string partial_path)
    : path_(std::move(path)), partial_path_(std::move(partial_path)) {}

PartialFolder::~PartialFolder() {
  std::error_code ignored;
  if (!published_) fs::remove_all(partial_path_, ignored);
}

absl::StatusOr<std::unique_ptr<PartialFolder>> PartialFolder::Create(const std::string& path) {
  std::string whole = path;
  while (whole.size() > 1 && whole.back() == '/') whole.pop_back();
  struct stat info;
  if (lstat(whole.c_str(), &info) == 0) return AlreadyThere(path);
  std::string partial = whole + ".partial-XXXXXX";
  if (mkdtemp(partial.data()) == nullptr) return FileError(path, "cannot create a folder beside it", errno);
  std::unique_ptr<PartialFolder> folder(new PartialFolder(whole, partial));
  const mode_t mask = umask(0);
  umask(mask);
  if (chmod(partial.c_str(), 0777 & ~mask) != 0) return FileError(partial, "cannot open to others", errno);
  return folder;
}

absl::Status PartialFolder::Publish() {
  C3PO_RETURN_IF_ERROR(SyncFolder(partial_path_));
  int error = renameat2(AT_FDCWD, partial_path_.c_str(), AT_FDCWD, path_.c_str(), RENAME_NOREPLACE) == 0 ? 0 : errno;
  if (error == EINVAL) {  // A file system that cannot: an empty folder that appeared meanwhile is replaced.
    error = rename(partial_path_.c_str(), path_.c_str()) == 0 ? 0 : errno;
  }
  if (error == EEXIST || error == ENOTEMPTY) return AlreadyThere(path_);
  if (error != 0) return FileError(path_, "cannot rename the finished folder", error);
  published_ = true;
  return SyncFolderOf(path_);
}

absl::StatusOr<std::vector<std::string>> FilesBesideWeights(const std::string& folder) {
  std::vector<std::string> files;
  C3PO_RETURN_IF_ERROR(AddFiles(folder, "", files));
  std::sort(files.begin(), files.end());
  return files;
}

absl::Status CopyWholeFile(const std::string& from, const std::string& to) {
  C3PO_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(from, kFileBytesMax));
  std::error_code error;
  fs::create_directories(fs::path(to).parent_path(), error);
  if (error) return FileError(fs::path(to).parent_path().string(), "cannot create", error.value());
  return WriteFileDurably(to, text);
}

}  // namespace c3po
