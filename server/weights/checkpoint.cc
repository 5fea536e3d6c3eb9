#include "server/weights/checkpoint.h"

#include <sys/stat.h>

#include <cerrno>
#include <fstream>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr size_t kConfigBytesMax = 4 << 20;
// A document tree takes up to some 40 times its text: 16 MiB is 160,000 tensors and at most 640 MB.
constexpr size_t kIndexBytesMax = 16 << 20;

bool Exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

}  // namespace

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t bytes_max) {
  struct stat info;
  if (stat(path.c_str(), &info) != 0) return absl::ErrnoToStatus(errno, path);
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, ": not a regular file"));
  if (static_cast<uint64_t>(info.st_size) > bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", info.st_size, " bytes, at most ", bytes_max, " are taken"));
  }
  std::string text(static_cast<size_t>(info.st_size), '\0');
  std::ifstream stream(path, std::ios::binary);
  if (!stream.read(text.data(), static_cast<std::streamsize>(text.size()))) {
    return absl::DataLossError(absl::StrCat(path, ": cannot be read"));
  }
  return text;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& folder) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(folder));
  C3PO_ASSIGN_OR_RETURN(checkpoint->config_json_, ReadSmallFile(folder + "/config.json", kConfigBytesMax));
  const std::string single_path = folder + "/model.safetensors";
  const std::string index_path = folder + "/model.safetensors.index.json";
  if (!Exists(single_path) && Exists(index_path)) {
    C3PO_RETURN_IF_ERROR(checkpoint->OpenShards(index_path));
    return checkpoint;
  }
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(single_path));
  for (const std::string& name : file->names()) checkpoint->views_[name] = file->Find(name);
  checkpoint->files_.push_back(std::move(file));
  return checkpoint;
}

absl::Status Checkpoint::OpenShards(const std::string& index_path) {
  C3PO_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(index_path, kIndexBytesMax));
  const nlohmann::json index = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (index.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(index_path, ": not JSON"));
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map is missing or not an object"));
  }
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [name, value] : index["weight_map"].items()) {
    const std::string file_name = value.is_string() ? value.get<std::string>() : "";
    if (!absl::EndsWith(file_name, ".safetensors") || absl::StrContains(file_name, '/') ||
        absl::StrContains(file_name, '\0')) {
      return absl::InvalidArgumentError(absl::StrCat(index_path, ": weight_map[\"", name,
                                                     "\"] is not the name of a .safetensors file in the folder"));
    }
    const SafetensorsFile*& file = opened[file_name];
    if (file == nullptr) {
      C3PO_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> shard,
                            SafetensorsFile::Open(absl::StrCat(folder_, "/", file_name)));
      file = shard.get();
      files_.push_back(std::move(shard));
    }
    const TensorView* view = file->Find(name);
    if (view == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(file->path(), ": tensor \"", name, "\" is missing, which ",
                                                     "model.safetensors.index.json places there"));
    }
    views_[name] = view;
  }
  // What a shard holds beside what the index places there is shown too, so that whoever reads the model can refuse it.
  for (const auto& [file_name, file] : opened) {
    for (const std::string& name : file->names()) views_.try_emplace(name, file->Find(name));
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorView> Checkpoint::Find(absl::string_view name) const {
  const auto found = views_.find(name);
  if (found == views_.end()) return absl::NotFoundError(absl::StrCat(folder_, ": tensor \"", name, "\" is missing"));
  return *found->second;
}

std::vector<std::string> Checkpoint::names() const {
  std::vector<std::string> names;
  names.reserve(views_.size());
  for (const auto& [name, view] : views_) names.push_back(name);
  return names;
}

const std::string& Checkpoint::Digest() const {
  absl::call_once(digest_once_, [this] {
    Sha256 sha256;
    sha256.Update(absl::StrCat("config.json ", config_json_.size(), "\n"));
    sha256.Update(config_json_);
    for (const auto& [name, view] : views_) {
      sha256.Update(
          absl::StrCat(name, "\n", DTypeName(view->dtype), ShapeString(view->shape), " ", view->bytes.size(), "\n"));
      sha256.Update(absl::string_view(reinterpret_cast<const char*>(view->bytes.data()), view->bytes.size()));
    }
    digest_ = sha256.HexDigest();
  });
  return digest_;
}

}  // namespace c3po
