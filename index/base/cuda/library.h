#ifndef C3PO_INDEX_BASE_CUDA_LIBRARY_H_
#define C3PO_INDEX_BASE_CUDA_LIBRARY_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "index/base/cuda/runtime.h"

// The door to libc3po_cuda.so, which has all CUDA code of c3po. No program is linked with it: it is opened when a GPU is
// first asked for, and stays open. It is looked for beside the program, then in ../lib of the program's folder.
//
// Every error is FailedPrecondition and one sentence that begins with "device cuda: ", the same for every caller: the
// library is not there, does not load, is of another version, or finds no driver or no GPU that it has code for.
// Thread-safe.
namespace c3po::cuda {

// One file of the library, opened for as long as the process lives.
class Library {
 public:
  // The first of `paths` that is there.
  static absl::StatusOr<Library> Open(const std::vector<std::string>& paths);

  // Of the first GPU that this process sees; it lives as long as the process.
  absl::StatusOr<Runtime*> OpenRuntime() const;

  // The kernels of one kind; `name` is the exported function `const Table* name(int version)`. Needs no GPU.
  template <class Table>
  absl::StatusOr<const Table*> Kernels(const char* name) const {
    absl::StatusOr<void*> function = Find(name);
    if (!function.ok()) return std::move(function).status();
    const Table* table = reinterpret_cast<const Table* (*)(int)>(*function)(kCudaLibraryVersion);
    if (table == nullptr) return OtherVersion();
    return table;
  }

 private:
  Library(void* handle, std::string path) : handle_(handle), path_(std::move(path)) {}
  absl::StatusOr<void*> Find(const char* name) const;
  absl::Status OtherVersion() const;

  void* handle_;
  std::string path_;
};

// The library of this program, opened on the first call. What failed then is not tried again.
const absl::StatusOr<Library>& OpenLibrary();
absl::StatusOr<Runtime*> OpenRuntime();

}  // namespace c3po::cuda

#endif  // C3PO_INDEX_BASE_CUDA_LIBRARY_H_
