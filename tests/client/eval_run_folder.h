#ifndef C3PO_TESTS_CLIENT_EVAL_RUN_FOLDER_H_
#define C3PO_TESTS_CLIENT_EVAL_RUN_FOLDER_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/eval/item_result.h"

namespace c3po {

// A run folder in the test's own temporary folder, removed at the end.
class EvalRunFolder {
 public:
  explicit EvalRunFolder(const std::string& name = "run")
      : path_(absl::StrCat(testing::TempDir(), "c3po_eval_", getpid(), "_", name)) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~EvalRunFolder() { std::filesystem::remove_all(path_); }

  const std::string& path() const { return path_; }
  void WriteRunJson(const std::string& json) { std::ofstream(path_ + "/run.json") << json; }
  void AppendText(const std::string& text) { std::ofstream(path_ + "/items.jsonl", std::ios::app) << text; }
  void Append(const ItemResult& item) { AppendText(ToJsonLine(item) + "\n"); }
  // Answers of one method to questions 0, 1, ...: '1' right, '0' wrong, '.' not answered.
  void AppendAnswers(const std::string& task, const std::string& method, const std::string& right) {
    for (size_t i = 0; i < right.size(); ++i) {
      if (right[i] == '.') continue;
      ItemResult item;
      item.task = task;
      item.id = absl::StrCat("q", i);
      item.method = method;
      item.gold = 0;
      item.predicted = right[i] == '1' ? 0 : 1;
      item.correct = right[i] == '1';
      item.seconds = method == "none" ? 0.1 : 0.2 + 0.01 * static_cast<double>(i);
      item.prompt_tokens = 30;
      item.completion_tokens = 2;
      if (method == "ngd") {
        item.optimization_seconds = 0.1;
        item.gate = i % 2 == 0 ? "applied" : "skipped_neighbors_far";
        item.neighbor_ids = {absl::StrCat("ref", i)};
        item.neighbor_distances = {0.1 + 0.01 * static_cast<double>(i)};
        item.losses = {1.0, 0.5};
      }
      Append(item);
    }
  }

 private:
  const std::string path_;
};

// Two groups of two tasks and one; methods none, ngd, oracle and vote.
inline constexpr char kEvalRunJson[] = R"json({
  "version": 1, "created_unix_seconds": 1780000000,
  "server": {"version": "0.1.0", "model": {"name": "tiny-moe", "digest": "sha256:abc"},
             "embedder": {"name": "mini", "digest": "sha256:def"}},
  "tasks": [{"name": "sst2", "group": "adaptation", "kind": "choice", "metric": "raw", "items": 8, "file": "a", "collection": "c"},
            {"name": "mrpc", "group": "adaptation", "kind": "choice", "metric": "raw", "items": 4, "file": "b", "collection": "c"},
            {"name": "arc", "group": "knowledge", "kind": "choice", "metric": "raw", "items": 4, "file": "d", "collection": "c"}],
  "methods": [{"label": "none", "kind": "score", "optimization": {"method": "METHOD_NONE"}},
              {"label": "ngd", "kind": "score", "optimization": {"method": "METHOD_NEIGHBORHOOD_GRADIENT_DESCENT", "k": 12}},
              {"label": "bound", "kind": "score", "optimization": {"method": "METHOD_ORACLE"}},
              {"label": "vote", "kind": "knn_vote"}],
  "seed": 5, "command_line": "c3po eval --tasks 'a & b'"})json";

}  // namespace c3po

#endif  // C3PO_TESTS_CLIENT_EVAL_RUN_FOLDER_H_
