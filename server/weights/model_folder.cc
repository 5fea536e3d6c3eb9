#include "server/weights/model_folder.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "server/weights/gguf_parts.h"
#include "server/weights/safetensors_file.h"
#include "server/weights/weight_map.h"

namespace c3po {
namespace {

namespace fs = std::filesystem;

constexpr char kMain[] = "main";
constexpr char kModelPrefix[] = "models--";
constexpr size_t kNamePartMax = 96;  // Characters of ORG, and of NAME, on the hub.
constexpr size_t kRevisionMax = 255;
constexpr size_t kCommitDigits = 40;
constexpr int64_t kRefBytesMax = 4096;
constexpr int64_t kTreeBytesMax = 64 << 20;
constexpr size_t kListedMax = 5;  // Files, revisions or commits in one message.
// Read where they are there: a snapshot without them would load, and be another model.
constexpr const char* kOptionalFiles[] = {"generation_config.json",
                                          "tokenizer_config.json",
                                          "chat_template.jinja",
                                          "additional_chat_templates/tool_use.jinja",
                                          "modules.json",
                                          "sentence_bert_config.json",
                                          "config_sentence_transformers.json",
                                          "1_Pooling/config.json"};

bool IsWord(char c) { return absl::ascii_isalnum(c) || c == '_'; }

bool IsHexadecimal(absl::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isdigit(c) || (c >= 'a' && c <= 'f'); });
}
bool IsCommit(absl::string_view text) { return text.size() == kCommitDigits && IsHexadecimal(text); }

bool IsFolder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

std::string Variable(const char* name) {
  const char* const value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// $NAME and ${NAME}; a variable that is not set stays as it is written.
std::string WithVariables(absl::string_view text) {
  std::string out;
  while (!text.empty()) {
    size_t length = 1;
    std::string name;
    if (text[0] == '$' && text.size() > 1 && text[1] == '{' && text.find('}') != text.npos) {
      length = text.find('}') + 1;
      name = std::string(text.substr(2, length - 3));
    } else if (text[0] == '$') {
      while (length < text.size() && IsWord(text[length])) ++length;
      name = std::string(text.substr(1, length - 1));
    }
    const char* const value = name.empty() ? nullptr : std::getenv(name.c_str());
    absl::StrAppend(&out, value != nullptr ? absl::string_view(value) : text.substr(0, length));
    text.remove_prefix(length);
  }
  return out;
}

std::string Expanded(absl::string_view path) {
  if (path != "~" && !absl::StartsWith(path, "~/")) return WithVariables(path);
  return WithVariables(absl::StrCat(Variable("HOME"), path.substr(1)));
}

// The hub's rule of one part of a name; empty: it holds.
std::string PartProblem(absl::string_view part) {
  if (part.empty()) return "a part is empty";
  if (part == "." || absl::StrContains(part, "..")) return absl::StrCat(Quoted(part), " leads elsewhere");
  if (part.size() > kNamePartMax) return absl::StrCat("a part has more than ", kNamePartMax, " characters");
  for (const char c : part) {
    if (!IsWord(c) && c != '-' && c != '.') {
      return absl::StrCat(Quoted(part), " has characters other than letters, digits, \"-\", \"_\" and \".\"");
    }
  }
  if (!IsWord(part.front()) || !IsWord(part.back())) {
    return absl::StrCat(Quoted(part), " begins or ends with \"-\" or \".\"");
  }
  if (absl::StrContains(part, "--")) return absl::StrCat(Quoted(part), " has \"--\"");
  return "";
}

std::string NameProblem(absl::string_view name) {
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  if (absl::StartsWith(name, "/")) return "it is an absolute path";
  for (const absl::string_view part : parts) {
    if (const std::string problem = PartProblem(part); !problem.empty()) return problem;
  }
  if (parts.size() != 2) return absl::StrCat("it has ", parts.size(), parts.size() == 1 ? " part" : " parts");
  return absl::EndsWith(name, ".git") ? "it ends with \".git\"" : "";
}

// As git names branches and tags, without what a shell or a file system reads in another way; empty: it holds.
std::string RevisionProblem(absl::string_view revision) {
  if (revision.size() > kRevisionMax) return absl::StrCat("has more than ", kRevisionMax, " characters");
  for (const char c : revision) {
    if (!absl::ascii_isalnum(c) && !absl::StrContains("._-+@=,/", c)) {
      return "has characters other than letters, digits and . _ - + @ = , /";
    }
  }
  if (revision.front() == '-') return "begins with \"-\"";
  for (const absl::string_view part : absl::StrSplit(revision, '/')) {
    if (part.empty()) return "has an empty part";
    if (part.front() == '.' || absl::StrContains(part, "..")) return absl::StrCat("leads elsewhere by ", Quoted(part));
  }
  return "";
}

// "a, b and 3 more"
std::string Listed(const std::vector<std::string>& names) {
  const size_t count = std::min(names.size(), kListedMax);
  const std::string listed = absl::StrJoin(names.begin(), names.begin() + static_cast<std::ptrdiff_t>(count), ", ");
  return names.size() == count ? listed : absl::StrCat(listed, " and ", names.size() - count, " more");
}

// Paths below `folder` of what is no folder itself, sorted. Empty where it cannot be read.
std::vector<std::string> FilesBelow(const fs::path& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(folder, error); !error && it != fs::recursive_directory_iterator();
       it.increment(error)) {
    std::error_code ignored;
    if (!fs::is_directory(it->symlink_status(ignored))) files.push_back(it->path().lexically_relative(folder).string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// The names of the commit's files as the hub listed them; empty: the cache has no such list, or one that nobody can
// read, which huggingface_hub passes over as well.
std::set<std::string> TreeFiles(const fs::path& path) {
  std::set<std::string> names;
  const absl::StatusOr<std::string> text = ReadWholeFile(path.string(), kTreeBytesMax);
  if (!text.ok()) return names;
  const nlohmann::json tree = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!tree.is_object() || tree.value("format_version", nlohmann::json()) != 1) return names;
  const auto files = tree.find("files");
  if (files == tree.end() || !files->is_object()) return names;
  for (const auto& file : files->items()) names.insert(file.key());
  return names;
}

// What a snapshot lacks, in the order in which it would be read.
class MissingFiles {
 public:
  explicit MissingFiles(fs::path snapshot) : snapshot_(std::move(snapshot)), there_(FilesBelow(snapshot_)) {}

  // A link that leads nowhere is a file whose blob is gone.
  bool Need(const std::string& name) {
    std::error_code ignored;
    if (fs::exists(snapshot_ / name, ignored)) return true;
    const std::string told = absl::StrCat(name, Has(name) ? " (a link that leads nowhere)" : "");
    if (std::find(missing_.begin(), missing_.end(), told) == missing_.end()) missing_.push_back(told);
    return false;
  }

  void NeedWeights() {
    constexpr char kSingle[] = "model.safetensors", kIndex[] = "model.safetensors.index.json";
    const bool shards = std::any_of(there_.begin(), there_.end(), [](const std::string& name) {
      return absl::EndsWith(name, ".safetensors") && absl::StrContains(name, "-of-");
    });
    if (Has(kSingle) || (!Has(kIndex) && !shards)) {
      Need(kSingle);
    } else if (Need(kIndex)) {
      // Who opens the weights says what is wrong with the index.
      const absl::StatusOr<WeightMap> weight_map = ReadWeightMap((snapshot_ / kIndex).string());
      if (!weight_map.ok()) return;
      std::set<std::string> files;
      for (const auto& [tensor, file] : *weight_map) files.insert(file);
      for (const std::string& file : files) Need(file);
    }
  }

  // Of what c3pod reads where it is there: files that the commit has, and links without a blob.
  void NeedOptional(const std::set<std::string>& tree) {
    for (const char* name : kOptionalFiles) {
      if (tree.count(name) > 0 || Has(name)) Need(name);
    }
  }

  const std::vector<std::string>& names() const { return missing_; }

 private:
  bool Has(const std::string& name) const { return std::binary_search(there_.begin(), there_.end(), name); }

  const fs::path snapshot_;
  const std::vector<std::string> there_;
  std::vector<std::string> missing_;
};

// One model of the hub's cache, at one revision.
class CachedModel {
 public:
  explicit CachedModel(const ModelReference& reference)
      : setting_(reference.setting),
        name_(reference.value),
        revision_setting_(reference.revision_setting),
        revision_(reference.revision.empty() ? kMain : reference.revision),
        cache_(HubCachePath()),
        folder_(fs::path(cache_) /
                absl::StrCat(kModelPrefix, absl::StrJoin(absl::StrSplit(reference.value, '/'), "--"))) {}

  absl::StatusOr<ModelFolder> Find() const {
    if (!IsFolder(folder_)) {
      return NotThere(absl::StrCat("is no folder, and the Hugging Face cache ", cache_, " does not have it"));
    }
    C3PO_ASSIGN_OR_RETURN(const std::string commit, Commit());
    const fs::path snapshot = folder_ / "snapshots" / commit;
    if (!IsFolder(snapshot)) {
      return NotThere(absl::StrCat("the Hugging Face cache ", cache_, " has no files of revision ", revision_,
                                   revision_ == commit ? "" : absl::StrCat(", commit ", commit)));
    }
    MissingFiles missing(snapshot);
    missing.Need("config.json");
    missing.NeedWeights();
    missing.Need("tokenizer.json");
    missing.NeedOptional(TreeFiles(folder_ / "trees" / absl::StrCat(commit, ".json")));
    if (!missing.names().empty()) {
      return NotThere(
          absl::StrCat(snapshot.string(), " is incomplete, without ", Listed(missing.names()), Unfinished()));
    }
    return ModelFolder{snapshot.string(), NameOfFolder(snapshot.string()), commit};
  }

 private:
  absl::StatusOr<std::string> Commit() const {
    if (IsCommit(revision_)) return revision_;
    const fs::path path = folder_ / "refs" / revision_;
    // A folder of references is none itself.
    const absl::StatusOr<std::string> text =
        IsFolder(path) ? absl::NotFoundError("") : ReadWholeFile(path.string(), kRefBytesMax);
    if (absl::IsNotFound(text.status())) return NoSuchRevision();
    const std::string commit(absl::StripAsciiWhitespace(text.ok() ? *text : ""));
    if (IsCommit(commit)) return commit;
    return absl::DataLossError(absl::StrCat(setting_, ": ", name_, ": ", path.string(), " holds no commit of ",
                                            kCommitDigits, " hexadecimal digits; ", Bring()));
  }

  absl::Status NoSuchRevision() const {
    const std::vector<std::string> revisions = FilesBelow(folder_ / "refs");
    std::vector<std::string> commits;
    std::error_code error;
    for (auto it = fs::directory_iterator(folder_ / "snapshots", error); !error && it != fs::directory_iterator();
         it.increment(error)) {
      const std::string commit = it->path().filename().string();
      if (!IsCommit(commit)) continue;
      if (absl::StartsWith(commit, revision_)) {
        return NotThere(absl::StrCat(revision_setting_, " ", revision_,
                                     " is no branch or tag in the Hugging Face cache ", cache_,
                                     "; a commit is given in full, such as ", commit));
      }
      commits.push_back(commit);
    }
    std::sort(commits.begin(), commits.end());
    return NotThere(absl::StrCat(
        "the Hugging Face cache ", cache_, " has no revision ", revision_, " of it",
        revisions.empty() ? "" : absl::StrCat("; it has ", Listed(revisions)),
        commits.empty() ? "" : absl::StrCat("; ", revision_setting_, " also takes its commit ", Listed(commits))));
  }

  std::string Unfinished() const {
    int64_t count = 0;
    for (const std::string& blob : FilesBelow(folder_ / "blobs")) count += absl::EndsWith(blob, ".incomplete") ? 1 : 0;
    if (count == 0) return "";
    return absl::StrCat("; ", count, count == 1 ? " download" : " downloads", " in blobs/ did not end (*.incomplete)");
  }

  std::string Bring() const {
    return absl::StrCat("c3pod downloads nothing, this brings it: hf download ", name_, " --revision ", revision_);
  }

  absl::Status NotThere(absl::string_view what) const {
    return absl::NotFoundError(absl::StrCat(setting_, ": ", name_, ": ", what, ". ", Bring()));
  }

  const std::string setting_, name_, revision_setting_, revision_, cache_;
  const fs::path folder_;
};

}  // namespace

std::string HubCachePath() {
  for (const char* name : {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"}) {
    if (const std::string path = Variable(name); !path.empty()) return Expanded(path);
  }
  if (const std::string home = Variable("HF_HOME"); !home.empty()) return (fs::path(Expanded(home)) / "hub").string();
  const std::string caches = Variable("XDG_CACHE_HOME");
  return (fs::path(Expanded(caches.empty() ? "~/.cache" : caches)) / "huggingface" / "hub").string();
}

absl::StatusOr<ModelFolder> FindModelFolder(const ModelReference& reference) {
  const auto wrong = [&reference](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(reference.setting, ": ", Quoted(reference.value), " ", what));
  };
  const std::string& revision = reference.revision;
  std::error_code error;
  const fs::file_status status = fs::status(reference.value, error);
  if (fs::is_directory(status)) {
    if (revision.empty()) return ModelFolder{reference.value, NameOfFolder(reference.value), ""};
    return absl::InvalidArgumentError(absl::StrCat(reference.revision_setting, ": ", reference.setting, " ",
                                                   reference.value,
                                                   " is a folder, which has no revisions; leave it out"));
  }
  if (fs::exists(status)) {
    if (!reference.takes_gguf) return wrong("is no folder");
    if (!IsGgufPath(reference.value)) return wrong("is neither a folder nor a file *.gguf");
    if (revision.empty()) return ModelFolder{reference.value, NameOfFolder(reference.value), ""};
    return absl::InvalidArgumentError(absl::StrCat(reference.revision_setting, ": ", reference.setting, " ",
                                                   reference.value,
                                                   " is a file, which has no revisions; leave it out"));
  }
  if (error == std::errc::permission_denied) {
    return absl::PermissionDeniedError(
        absl::StrCat(reference.setting, ": ", Quoted(reference.value), ": ", error.message()));
  }
  if (const std::string problem = NameProblem(reference.value); !problem.empty()) {
    return wrong(absl::StrCat("does not exist, and is no name ORG/NAME of the Hugging Face hub: ", problem));
  }
  if (const std::string problem = revision.empty() ? "" : RevisionProblem(revision); !problem.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(reference.revision_setting, ": ", Quoted(revision), " ", problem,
                                                   "; it must be a branch, tag or commit of ", reference.setting, " ",
                                                   reference.value));
  }
  return CachedModel(reference).Find();
}

std::string NameOfFolder(const std::string& folder) {
  if (IsGgufPath(folder)) return fs::path(GgufStem(folder)).filename().string();
  fs::path path = fs::path(folder).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  const fs::path snapshots = path.parent_path();
  const std::string model = snapshots.parent_path().filename().string();
  if (snapshots.filename() == "snapshots" && absl::StartsWith(model, kModelPrefix)) {
    return absl::StrJoin(absl::StrSplit(absl::StripPrefix(model, kModelPrefix), "--"), "/");
  }
  return path.filename().string();
}

}  // namespace c3po
