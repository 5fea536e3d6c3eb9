#ifndef C3PO_CLIENT_EVAL_RUN_FOLDER_H_
#define C3PO_CLIENT_EVAL_RUN_FOLDER_H_

#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_set>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "c3po/v1/server.pb.h"
#include "client/eval/item_result.h"
#include "client/eval/method.h"
#include "client/eval/task.h"

namespace c3po {

// One point of an ablation's axis.
struct AxisPoint {
  std::string label;
  std::string value;  // a number where the variable has numbers, else the label again
  std::string method_label;
};

struct AblationAxis {
  std::string name;
  std::string variable;
  std::vector<AxisPoint> points;
};

// What one run measures: run.json. Of the tasks everything but the items' texts is written.
struct RunDescription {
  int64_t created_unix_seconds = 0;
  v1::GetServerInfoResponse server;
  std::vector<Task> tasks;
  std::vector<EvalMethod> methods;
  // Of each collection that a method reads what its requests get that set nothing: profile over server defaults.
  std::map<std::string, v1::OptimizationOptions> effective;
  std::optional<uint64_t> seed;  // of the questions' order; not set: the files' own
  std::string command_line;
  std::optional<AblationAxis> ablation;
};

// A folder that holds a run: run.json; items.jsonl with one line per (task, id, method), each written as its answer
// comes, so that a run that was ended goes on where it was; and what ids stand for (run_texts.h). Used by one thread at
// a time.
class RunFolder {
 public:
  // Makes the folder, or goes on with the run it holds when that has the same tasks, methods, seed, model, ablation and
  // collections' settings; only the number of questions may have grown. A last line that a kill cut short is taken off.
  // FailedPrecondition: the folder holds another run (says what differs). InvalidArgument: run.json or a line cannot be
  // read. Other errors: the file system's.
  static absl::StatusOr<std::unique_ptr<RunFolder>> Open(const std::string& path, const RunDescription& run);
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  // Whether the folder held the answer when it was opened, or it was appended since.
  bool Holds(const std::string& task, const std::string& id, const std::string& method) const;
  // Writes the line and flushes it to the file. The first of two lines for the same answer counts.
  absl::Status Append(const ItemResult& result);

  // All that the folder holds.
  const std::vector<ItemResult>& results() const { return results_; }
  // How many of them were there when it was opened.
  size_t resumed() const { return resumed_; }
  const std::string& path() const { return path_; }

 private:
  explicit RunFolder(std::string path) : path_(std::move(path)) {}
  absl::Status ReadItems();
  absl::Status WriteQuestions(const std::vector<Task>& tasks);
  absl::Status OpenReferences();

  const std::string path_;
  std::FILE* file_ = nullptr;
  std::FILE* references_ = nullptr;
  std::unordered_set<std::string> known_references_;  // ids in that file
  std::vector<ItemResult> results_;
  std::unordered_set<std::string> held_;
  size_t resumed_ = 0;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_RUN_FOLDER_H_
