#include "server/weights/checkpoint.h"

#include <sys/stat.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/sha256.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int64_t kIndexBytesMax = 64 << 20;

bool Exists(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0;
}

// Reads {"weight_map": {tensor name: file name}} as a stream of JSON events, as HeaderReader does and for the same
// reasons; whatever else the top level holds is passed over.
class WeightMapReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  using WeightMap = std::map<std::string, std::string>;

  bool key(string_t& text) override {
    if (depth_ == 1) {
      at_weight_map_ = text == "weight_map";
      if (at_weight_map_ && std::exchange(seen_, true)) return Fail("weight_map appears twice");
    } else if (InWeightMap()) {
      name_ = text;
    }
    return true;
  }
  bool string(string_t& text) override {
    if (!InWeightMap()) return Value();
    if (!absl::EndsWith(text, ".safetensors") || absl::StrContains(text, '/') || absl::StrContains(text, '\0')) {
      return BadEntry();
    }
    if (!weight_map_.emplace(name_, text).second) return Fail(absl::StrCat("weight_map[", Quoted(name_), "] twice"));
    if (weight_map_.size() > kSafetensorsTensorsMax) {
      return Fail(absl::StrCat("weight_map has more than ", kSafetensorsTensorsMax, " tensors"));
    }
    return true;
  }
  bool start_object(std::size_t) override {
    if (InWeightMap()) return BadEntry();
    ++depth_;
    return true;
  }
  bool end_object() override { return End(); }
  bool start_array(std::size_t) override {
    if (!Value()) return false;
    ++depth_;
    return true;
  }
  bool end_array() override { return End(); }
  bool number_unsigned(number_unsigned_t) override { return Value(); }
  bool number_integer(number_integer_t) override { return Value(); }
  bool number_float(number_float_t, const string_t&) override { return Value(); }
  bool null() override { return Value(); }
  bool boolean(bool) override { return Value(); }
  bool binary(binary_t&) override { return Value(); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("not JSON at byte ", position));
  }

  // What is wrong with a document that was read; empty: nothing.
  const std::string& error() {
    if (error_.empty() && !seen_) Fail("weight_map is missing or not an object");
    return error_;
  }
  WeightMap TakeWeightMap() { return std::move(weight_map_); }

 private:
  bool InWeightMap() const { return at_weight_map_ && depth_ == 2; }
  bool End() {
    if (--depth_ == 1) at_weight_map_ = false;
    return true;
  }
  // A value that is not an object: passed over where nothing depends on it.
  bool Value() {
    if (InWeightMap()) return BadEntry();
    return depth_ > (at_weight_map_ ? 1u : 0u) || Fail("weight_map is missing or not an object");
  }
  bool BadEntry() {
    return Fail(absl::StrCat("weight_map[", Quoted(name_), "] is not the name of a .safetensors file in the folder"));
  }
  bool Fail(std::string problem) {
    if (error_.empty()) error_ = std::move(problem);
    return false;
  }

  size_t depth_ = 0;  // 1: in the top object.
  bool at_weight_map_ = false, seen_ = false;
  std::string name_;
  WeightMap weight_map_;
  std::string error_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& folder) {
  std::unique_ptr<Checkpoint> checkpoint(new Checkpoint(folder));
  C3PO_ASSIGN_OR_RETURN(checkpoint->config_json_, ReadWholeFile(folder + "/config.json", kConfigBytesMax));
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
  C3PO_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(index_path, kIndexBytesMax));
  WeightMapReader reader;
  nlohmann::json::sax_parse(text, &reader);
  if (!reader.error().empty()) return absl::InvalidArgumentError(absl::StrCat(index_path, ": ", reader.error()));
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [name, file_name] : reader.TakeWeightMap()) {
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
    views_[name] = view;
  }
  // What a shard holds beside what the index places there is shown too, so that whoever reads the model can refuse it.
  for (const auto& [file_name, file] : opened) {
    for (const std::string& name : file->names()) {
      if (views_.try_emplace(name, file->Find(name)).first->second == file->Find(name)) continue;
      return absl::InvalidArgumentError(absl::StrCat(file->path(), ": tensor ", Quoted(name), " is in two shards"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorView> Checkpoint::Find(absl::string_view name) const {
  const auto found = views_.find(name);
  if (found == views_.end())
    return absl::NotFoundError(absl::StrCat(folder_, ": tensor ", Quoted(name), " is missing"));
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
    for (auto next = views_.begin(); next != views_.end();) {
      const auto& [name, view] = *next++;
      if (next != views_.end()) ReadAhead(*next->second);
      sha256.Update(
          absl::StrCat(name, "\n", DTypeName(view->dtype), ShapeString(view->shape), " ", view->bytes.size(), "\n"));
      sha256.Update(absl::string_view(reinterpret_cast<const char*>(view->bytes.data()), view->bytes.size()));
      DropPages(*view);
    }
    digest_ = sha256.HexDigest();
  });
  return digest_;
}

}  // namespace c3po
