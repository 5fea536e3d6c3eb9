#include "server/weights/checkpoint.h"

#include <sys/stat.h>

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"
#include "server/weights/packed_tensors.h"
#include "server/weights/weight_map.h"

namespace c3po {
namespace {

bool Exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& folder) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(folder, folder + "/config.json"));
  C3PO_ASSIGN_OR_RETURN(checkpoint->config_json_, ReadWholeFile(checkpoint->config_path_, kConfigBytesMax));
  const std::string single_path = folder + "/model.safetensors";
  const std::string index_path = folder + "/model.safetensors.index.json";
  if (!Exists(single_path) && Exists(index_path)) {
    C3PO_RETURN_IF_ERROR(checkpoint->OpenShards(index_path));
    return checkpoint;
  }
  C3PO_ASSIGN_OR_RETURN(std::unique_ptr<SafetensorsFile> file, SafetensorsFile::Open(single_path));
  for (const std::string& name : file->names()) checkpoint->views_[name] = *file->Find(name);
  checkpoint->files_.push_back(std::move(file));
  return checkpoint;
}

absl::Status Checkpoint::OpenShards(const std::string& index_path) {
  C3PO_ASSIGN_OR_RETURN(const WeightMap weight_map, ReadWeightMap(index_path));
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [name, file_name] : weight_map) {
    const SafetensorsFile*& file = opened[file_name];
    if (file == nullptr) {
      auto shard = SafetensorsFile::Open(absl::StrCat(folder_, "/", file_name));
      if (absl::IsNotFound(shard.status())) {
        return absl::NotFoundError(absl::StrCat(index_path, ": weight_map[", Quoted(name), "] is ", Quoted(file_name),
                                                ", which is not in the folder"));
      }
      C3PO_RETURN_IF_ERROR(shard.status());
      file = shard->get();
      files_.push_back(*std::move(shard));
    }
    const TensorView* view = file->Find(name);
    if (view == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(file->path(), ": tensor ", Quoted(name), " is missing, which ",
                                                     "model.safetensors.index.json places there"));
    }
    views_[name] = *view;
  }
  // What a shard holds beside what the index places there is shown too, so that whoever reads the model can refuse it.
  for (const auto& [file_name, file] : opened) {
    for (const std::string& name : file->names()) {
      const TensorView& view = *file->Find(name);
      if (views_.try_emplace(name, view).first->second.bytes.data() == view.bytes.data()) continue;
      return absl::InvalidArgumentError(absl::StrCat(file->path(), ": tensor ", Quoted(name), " is in two shards"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorView> Checkpoint::Find(absl::string_view name) const {
  const auto found = views_.find(name);
  if (found == views_.end())
    return absl::NotFoundError(absl::StrCat(folder_, ": tensor ", Quoted(name), " is missing"));
  return found->second;
}

absl::StatusOr<Checkpoint::Place> Checkpoint::PlaceOf(absl::string_view name) const {
  C3PO_ASSIGN_OR_RETURN(const TensorView view, Find(name));
  for (const std::unique_ptr<SafetensorsFile>& file : files_) {
    const auto all = reinterpret_cast<uintptr_t>(file->bytes().data());
    const auto own = reinterpret_cast<uintptr_t>(view.bytes.data());
    if (own >= all && own - all < file->bytes().size()) return Place{file->path(), static_cast<int64_t>(own - all)};
  }
  return absl::NotFoundError(absl::StrCat(folder_, ": tensor ", Quoted(name), " lies in no safetensors file"));
}

std::unique_ptr<Checkpoint> Checkpoint::Of(const std::string& path, std::string config_json,
                                           std::map<std::string, TensorView, std::less<>> views,
                                           std::shared_ptr<const void> source) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(path, path));
  checkpoint->config_json_ = std::move(config_json);
  checkpoint->views_ = std::move(views);
  checkpoint->source_ = std::move(source);
  return checkpoint;
}

absl::Status Checkpoint::Join(absl::Span<const PackedFormat> formats) { return JoinPacked(formats, views_); }

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
    for (auto next = views_.begin(); next != views_.end();) {
      const auto& [name, view] = *next++;
      if (next != views_.end()) ReadAhead(next->second);
      sha256.Update(
          absl::StrCat(name, "\n", DTypeName(view.dtype), ShapeString(view.shape), " ", view.bytes.size(), "\n"));
      for (const absl::Span<const std::byte> bytes : {view.bytes, view.scales}) {
        sha256.Update(absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
      }
      DropPages(view);
    }
    digest_ = sha256.HexDigest();
  });
  return digest_;
}

}  // namespace c3po
