// A whole model folder, of small files: the input is config.json, model.safetensors.index.json and two shards, each
// after a line "==" but the first. Opened, checked against its configuration and hashed.

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <vector>

#include "absl/strings/str_split.h"
#include "server/model/config/tensor_plan.h"
#include "server/weights/checkpoint.h"
#include "tests/fuzz/fuzz_target.h"

namespace {

// One folder for all inputs of this process, removed at its end.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "c3po_fuzz_XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) std::abort();
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  std::string path() const { return path_; }
  void Write(const char* name, absl::string_view bytes) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << bytes;
  }

 private:
  std::string path_;
};

}  // namespace

C3PO_FUZZ_TARGET(input) {
  static const Folder folder;
  constexpr const char* kNames[] = {"config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"};
  const std::vector<absl::string_view> parts = absl::StrSplit(input, absl::MaxSplits("\n==\n", std::size(kNames) - 1));
  for (size_t i = 0; i < std::size(kNames); ++i) folder.Write(kNames[i], i < parts.size() ? parts[i] : "");
  const auto checkpoint = c3po::Checkpoint::Open(folder.path());
  if (!checkpoint.ok()) return;
  C3PO_FUZZ_CHECK((*checkpoint)->Digest().size() == 64);
  const auto config = c3po::ReadConfig(**checkpoint);
  if (!config.ok() || !c3po::CheckTensors(**checkpoint, *config).ok()) return;
  int64_t elements = 0;
  for (const std::string& name : (*checkpoint)->names()) elements += (*checkpoint)->Find(name)->elements();
  C3PO_FUZZ_CHECK(c3po::CountParameters(*config).total <= elements);
}
