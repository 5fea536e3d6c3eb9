#include "index/base/cuda/library.h"

#include <dlfcn.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/status_macros.h"

namespace c3po::cuda {
namespace {

constexpr char kFile[] = "libc3po_cuda.so";

template <class... Parts>
absl::Status Missing(const Parts&... parts) {
  return absl::FailedPreconditionError(absl::StrCat("device cuda: ", parts...));
}

std::vector<std::string> PlacesOfThisProgram() {
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path folder = program.parent_path();
  return {folder / kFile, folder.parent_path() / "lib" / kFile};
}

}  // namespace

absl::StatusOr<Library> Library::Open(const std::vector<std::string>& paths) {
  for (const std::string& path : paths) {
    if (access(path.c_str(), F_OK) != 0) continue;
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle != nullptr) return Library(handle, path);
    const char* const reason = dlerror();
    return Missing("the CUDA code of c3po does not load: ", reason ? reason : path);
  }
  return Missing("this build of c3po is without CUDA code: ", absl::StrJoin(paths, " and "),
                 " are not there (target c3po_cuda; deploy/install_deps.sh --build-only --cuda brings its compiler)");
}

absl::StatusOr<void*> Library::Find(const char* name) const {
  if (void* const symbol = dlsym(handle_, name)) return symbol;
  return Missing(path_, " is of another version than this program: it has no ", name);
}

absl::Status Library::OtherVersion() const { return Missing(path_, " is of another version than this program"); }

absl::StatusOr<Runtime*> Library::OpenRuntime() const {
  C3PO_ASSIGN_OR_RETURN(void* const function, Find("c3po_cuda_runtime"));
  Error error = nullptr;
  Runtime* const runtime = reinterpret_cast<OpenRuntimeFunction>(function)(kCudaLibraryVersion, &error);
  if (runtime != nullptr) return runtime;
  if (error == nullptr) return OtherVersion();
  return Missing(error);
}

const absl::StatusOr<Library>& OpenLibrary() {
  static const auto* const library = new absl::StatusOr<Library>(Library::Open(PlacesOfThisProgram()));
  return *library;
}

absl::StatusOr<Runtime*> OpenRuntime() {
  static const auto* const runtime = new absl::StatusOr<Runtime*>([]() -> absl::StatusOr<Runtime*> {
    const absl::StatusOr<Library>& library = OpenLibrary();
    if (!library.ok()) return library.status();
    return library->OpenRuntime();
  }());
  return *runtime;
}

}  // namespace c3po::cuda
