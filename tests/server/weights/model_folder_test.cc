// Models found by name in caches laid out as huggingface_hub lays them out, and each way in which one is not whole.
// tests/integration/hub_names_test.py holds the same rule against huggingface_hub itself.

#include "server/weights/model_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kName[] = "allenai/OLMoE-1B-7B-0924";
constexpr char kFirst[] = "0123456789abcdef0123456789abcdef01234567";
constexpr char kSecond[] = "89abcdef0123456789abcdef0123456789abcdef";

class HubCache : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::remove_all(root_);
    fs::create_directories(root_);
    for (const char* name :
         {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME", "C3PO_TEST"}) {
      const char* const value = std::getenv(name);
      kept_[name] = value == nullptr ? std::nullopt : std::optional<std::string>(value);
      unsetenv(name);
    }
    setenv("HF_HUB_CACHE", root_.c_str(), 1);
  }
  void TearDown() override {
    for (const auto& [name, value] : kept_) value ? setenv(name.c_str(), value->c_str(), 1) : unsetenv(name.c_str());
    fs::remove_all(root_);
  }

  static void Write(const fs::path& path, const std::string& text) {
    fs::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  fs::path Model() const { return root_ / "models--allenai--OLMoE-1B-7B-0924"; }
  fs::path Snapshot(const std::string& commit) const { return Model() / "snapshots" / commit; }
  void SetRef(const std::string& revision, const std::string& commit) { Write(Model() / "refs" / revision, commit); }

  // A file of a snapshot: a link to a blob.
  void Link(const std::string& commit, const std::string& name, const std::string& text = "{}") {
    const fs::path link = Snapshot(commit) / name, blob = Model() / "blobs" / absl::StrCat("b", blobs_++);
    Write(blob, text);
    fs::create_directories(link.parent_path());
    fs::create_symlink(fs::relative(blob, link.parent_path()), link);
  }
  void LinkWhole(const std::string& commit) {
    for (const char* name : {"config.json", "tokenizer.json", "model.safetensors"}) Link(commit, name);
  }

  static absl::StatusOr<ModelFolder> Find(const std::string& value, const std::string& revision = "") {
    return FindModelFolder({"--model", value, "--revision", revision});
  }
  static std::string Refusal(const std::string& value, const std::string& revision = "") {
    const absl::StatusOr<ModelFolder> found = Find(value, revision);
    return found.ok() ? "found " + found->path : std::string(found.status().message());
  }

  const fs::path root_ = fs::path(::testing::TempDir()) / absl::StrCat("c3po_hub_cache_", getpid());
  std::map<std::string, std::optional<std::string>> kept_;
  int blobs_ = 0;
};

TEST_F(HubCache, LiesWhereTheVariablesSay) {
  setenv("HOME", "/h", 1);
  setenv("XDG_CACHE_HOME", "/x", 1);
  setenv("HF_HOME", "~/hf", 1);
  setenv("HUGGINGFACE_HUB_CACHE", "$C3PO_TEST/${C3PO_TEST}x/$", 1);
  setenv("HF_HUB_CACHE", "~/cache", 1);
  EXPECT_EQ(HubCachePath(), "/h/cache");
  setenv("HF_HUB_CACHE", "", 1);  // Counts as unset.
  EXPECT_EQ(HubCachePath(), "$C3PO_TEST/${C3PO_TEST}x/$");
  setenv("C3PO_TEST", "$HOME", 1);
  EXPECT_EQ(HubCachePath(), "$HOME/$HOMEx/$");  // What was put in is not looked at again.
  unsetenv("HUGGINGFACE_HUB_CACHE");
  EXPECT_EQ(HubCachePath(), "/h/hf/hub");
  unsetenv("HF_HOME");
  EXPECT_EQ(HubCachePath(), "/x/huggingface/hub");
  unsetenv("XDG_CACHE_HOME");
  EXPECT_EQ(HubCachePath(), "/h/.cache/huggingface/hub");
}

TEST_F(HubCache, FindsBranchesTagsAndFullCommits) {
  SetRef("main", kFirst);
  SetRef("v1.0", kSecond);
  SetRef("refs/pr/1", kSecond);
  LinkWhole(kFirst);
  LinkWhole(kSecond);
  const std::pair<const char*, const char*> revisions[] = {
      {"", kFirst}, {"main", kFirst}, {kFirst, kFirst}, {"v1.0", kSecond}, {"refs/pr/1", kSecond}, {kSecond, kSecond}};
  for (const auto& [revision, commit] : revisions) {
    const absl::StatusOr<ModelFolder> found = Find(kName, revision);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->path, Snapshot(commit)) << revision;
    EXPECT_EQ(found->name, kName);
    EXPECT_EQ(found->commit, commit);
  }
}

TEST_F(HubCache, NamesTheLineThatBringsAMissingModelOrRevision) {
  EXPECT_EQ(Find(kName).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Refusal(kName),
              AllOf(StartsWith("--model: allenai/OLMoE-1B-7B-0924: is no folder"), HasSubstr(root_.string()),
                    HasSubstr("hf download allenai/OLMoE-1B-7B-0924 --revision main")));
  SetRef("v1.0", kFirst);
  LinkWhole(kFirst);
  EXPECT_THAT(Refusal(kName), AllOf(HasSubstr("no revision main of it; it has v1.0; --revision also takes its commit"),
                                    HasSubstr(kFirst)));
  EXPECT_THAT(Refusal(kName, "v2"), HasSubstr("hf download allenai/OLMoE-1B-7B-0924 --revision v2"));
  // snapshot_download takes no part of a commit.
  EXPECT_THAT(Refusal(kName, "0123456"), HasSubstr(absl::StrCat("a commit is given in full, such as ", kFirst)));
  EXPECT_THAT(Refusal(kName, kSecond), HasSubstr(absl::StrCat("has no files of revision ", kSecond, ". ")));
  SetRef("main", kSecond);
  EXPECT_THAT(Refusal(kName), HasSubstr(absl::StrCat("has no files of revision main, commit ", kSecond)));
  SetRef("refs/pr/1", kFirst);
  EXPECT_THAT(Refusal(kName, "refs/pr"), HasSubstr("no revision refs/pr of it"));  // A folder.
}

TEST_F(HubCache, RefusesAReferenceThatLeadsElsewhere) {
  LinkWhole(kFirst);
  for (const char* held : {"../snapshots", "", "0123", "/"}) {
    SetRef("main", held);
    EXPECT_EQ(Find(kName).status().code(), absl::StatusCode::kDataLoss) << held;
    EXPECT_THAT(Refusal(kName), AllOf(HasSubstr("refs/main holds no commit"), HasSubstr("hf download")));
  }
  SetRef("main", absl::StrCat(kFirst, "\n"));
  EXPECT_TRUE(Find(kName).ok());
}

TEST_F(HubCache, TellsEachFileThatAnEndedDownloadLeftOut) {
  SetRef("main", kFirst);
  fs::create_directories(Snapshot(kFirst));
  const auto refusal = [&] {
    EXPECT_THAT(Refusal(kName), HasSubstr("hf download allenai/OLMoE-1B-7B-0924 --revision main"));
    EXPECT_EQ(Find(kName).status().code(), absl::StatusCode::kNotFound);
    return Refusal(kName);
  };
  EXPECT_THAT(refusal(), HasSubstr("is incomplete, without config.json, model.safetensors, tokenizer.json. "));
  Link(kFirst, "config.json");
  Link(kFirst, "tokenizer.json");
  Link(kFirst, "model-00001-of-00003.safetensors");
  EXPECT_THAT(refusal(), HasSubstr("without model.safetensors.index.json. "));
  Link(kFirst, "model.safetensors.index.json",
       R"({"weight_map": {"a": "model-00001-of-00003.safetensors", "b": "model-00002-of-00003.safetensors",
           "c": "model-00002-of-00003.safetensors", "d": "model-00003-of-00003.safetensors"}})");
  Write(Model() / "blobs" / "b9.incomplete", "");
  EXPECT_THAT(refusal(),
              HasSubstr("without model-00002-of-00003.safetensors, model-00003-of-00003.safetensors; 1 download "
                        "in blobs/ did not end (*.incomplete)"));
  Link(kFirst, "model-00002-of-00003.safetensors");
  fs::create_symlink("../../blobs/gone", Snapshot(kFirst) / "model-00003-of-00003.safetensors");
  EXPECT_THAT(refusal(), HasSubstr("without model-00003-of-00003.safetensors (a link that leads nowhere); 1"));
  fs::remove(Snapshot(kFirst) / "model-00003-of-00003.safetensors");
  Link(kFirst, "model-00003-of-00003.safetensors");
  EXPECT_TRUE(Find(kName).ok());  // What else did not end is no file of the model.
}

TEST_F(HubCache, TellsAFileThatTheCommitHasAndTheModelWouldDoWithout) {
  SetRef("main", kFirst);
  LinkWhole(kFirst);
  EXPECT_TRUE(Find(kName).ok());
  fs::create_symlink("../../blobs/gone", Snapshot(kFirst) / "generation_config.json");
  EXPECT_THAT(Refusal(kName), HasSubstr("without generation_config.json (a link that leads nowhere). "));
  fs::remove(Snapshot(kFirst) / "generation_config.json");
  const fs::path tree = Model() / "trees" / absl::StrCat(kFirst, ".json");
  Write(tree,
        R"({"format_version": 1, "files": {"README.md": {}, "tokenizer_config.json": {}, "chat_template.jinja": {}}})");
  EXPECT_THAT(Refusal(kName), HasSubstr("without tokenizer_config.json, chat_template.jinja. "));
  for (const char* passed_over : {"{", "[]", R"({"format_version": 2, "files": {"tokenizer_config.json": {}}})",
                                  R"({"format_version": 1, "files": ["tokenizer_config.json"]})"}) {
    Write(tree, passed_over);
    EXPECT_TRUE(Find(kName).ok()) << passed_over;
  }
}

TEST_F(HubCache, LeavesADamagedIndexToWhoOpensTheWeights) {
  SetRef("main", kFirst);
  for (const char* name : {"config.json", "tokenizer.json"}) Link(kFirst, name);
  Link(kFirst, "model.safetensors.index.json", R"({"weight_map": {"a": "../../../etc/a.safetensors"}})");
  EXPECT_TRUE(Find(kName).ok());
}

TEST_F(HubCache, RefusesPathsAndWhatIsNoName) {
  const std::pair<std::string, const char*> cases[] = {
      {"../OLMoE", "\"..\" leads elsewhere"},
      {"allenai/..", "\"..\" leads elsewhere"},
      {"./allenai/OLMoE", "\".\" leads elsewhere"},
      {"a..b/c", "\"a..b\" leads elsewhere"},
      {"/models/OLMoE", "an absolute path"},
      {"allenai//OLMoE", "a part is empty"},
      {"allenai/", "a part is empty"},
      {"OLMoE", "it has 1 part"},
      {"hub/allenai/OLMoE", "it has 3 parts"},
      {"allenai/OLMoE 1B", "\"OLMoE 1B\" has characters other than"},
      {"allenai/OLMoE;id", "has characters other than"},
      {"allenai\n/OLMoE", "has characters other than"},
      {"allenai/OLMo\xc3\xa9", "has characters other than"},
      {"-allenai/OLMoE", "begins or ends"},
      {"allenai/OLMoE.", "begins or ends"},
      {"allenai/OL--MoE", "has \"--\""},
      {"allenai/OLMoE.git", "ends with \".git\""},
      {absl::StrCat("allenai/", std::string(97, 'x')), "more than 96 characters"}};
  for (const auto& [value, reason] : cases) {
    EXPECT_EQ(Find(value).status().code(), absl::StatusCode::kInvalidArgument) << value;
    EXPECT_THAT(Refusal(value), AllOf(StartsWith("--model: \""), HasSubstr("does not exist, and is no name ORG/NAME"),
                                      HasSubstr(reason), Not(HasSubstr("\n"))));
  }
  SetRef("main", kFirst);
  LinkWhole(kFirst);
  for (const char* revision : {"../main", "a/../main", "/main", "main/", "a//b", ".", ".hidden", "-x", "a b", "$(id)",
                               "a\\b", "ma\xc3\xafn"}) {
    EXPECT_EQ(Find(kName, revision).status().code(), absl::StatusCode::kInvalidArgument) << revision;
    EXPECT_THAT(Refusal(kName, revision), StartsWith("--revision: ")) << revision;
  }
  EXPECT_THAT(Refusal(kName, std::string(256, 'a')), HasSubstr("more than 255 characters"));
}

TEST_F(HubCache, PutsAFolderThatExistsFirst) {
  SetRef("main", kFirst);
  LinkWhole(kFirst);
  const fs::path kept = fs::current_path(), there = root_ / "here";
  fs::create_directories(there / kName);
  fs::current_path(there);
  const absl::StatusOr<ModelFolder> found = Find(kName);
  const std::string refusal = Refusal(kName, "main");
  fs::current_path(kept);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->path, kName);
  EXPECT_EQ(found->name, "OLMoE-1B-7B-0924");
  EXPECT_EQ(found->commit, "");
  EXPECT_THAT(refusal, AllOf(StartsWith("--revision: "), HasSubstr("is a folder, which has no revisions")));
  Write(root_ / "file", "");
  EXPECT_THAT(Refusal((root_ / "file").string()), HasSubstr("is no folder"));
}

TEST_F(HubCache, IsNotAskedForAGgufFile) {
  const std::string path = (root_ / "m.gguf").string();
  Write(root_ / "m.gguf", "");
  Write(root_ / "file", "");
  const auto find = [](const std::string& value, const std::string& revision) {
    return FindModelFolder({"--model", value, "--revision", revision, /*takes_gguf=*/true});
  };
  const auto found = find(path, "");
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->path, path);
  EXPECT_EQ(found->name, "m");
  EXPECT_THAT(std::string(find(path, "main").status().message()), HasSubstr("is a file, which has no revisions"));
  EXPECT_THAT(std::string(find((root_ / "file").string(), "").status().message()),
              HasSubstr("is neither a folder nor a file *.gguf"));
  EXPECT_THAT(Refusal(path), HasSubstr("is no folder"));
}

TEST(NameOfFolder, IsTheHubsNameOfASnapshotAndElseTheFoldersOwn) {
  EXPECT_EQ(NameOfFolder("/models/OLMoE"), "OLMoE");
  EXPECT_EQ(NameOfFolder("/models/OLMoE/"), "OLMoE");
  EXPECT_EQ(NameOfFolder("models/../OLMoE/."), "OLMoE");
  EXPECT_EQ(NameOfFolder("/models/olmoe-q4_k_m.gguf"), "olmoe-q4_k_m");
  EXPECT_EQ(NameOfFolder("/models/olmoe-00001-of-00003.gguf"), "olmoe");
  EXPECT_EQ(NameOfFolder("/models/olmoe-1-of-3.gguf"), "olmoe-1-of-3");
  EXPECT_EQ(NameOfFolder("/c/models--allenai--OLMoE-1B/snapshots/0123/"), "allenai/OLMoE-1B");
  EXPECT_EQ(NameOfFolder("/c/models--gpt2/snapshots/0123"), "gpt2");
  EXPECT_EQ(NameOfFolder("/c/datasets--a--b/snapshots/0123"), "0123");
}

}  // namespace
}  // namespace c3po
