#include "client/eval/task_file.h"

#include <algorithm>
#include <filesystem>
#include <unordered_set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/eval/benchmark_format.h"
#include "client/eval/sample_line.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

namespace fs = std::filesystem;

std::string NameOf(const std::string& path) {
  fs::path file(path);
  if (!file.has_filename()) file = file.parent_path();
  const std::string stem = file.stem().string();
  if ((stem == "heldout" || stem == "test") && file.has_parent_path()) return file.parent_path().filename().string();
  return stem;
}

absl::StatusOr<std::vector<TaskItem>> ReadCsvFolder(const std::string& path) {
  std::vector<std::string> files;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(path, error)) {
    if (entry.path().extension() == ".csv") files.push_back(entry.path().string());
  }
  if (error) return absl::NotFoundError(absl::StrCat(path, ": ", error.message()));
  std::sort(files.begin(), files.end());
  std::vector<TaskItem> items;
  for (const std::string& file : files) {
    C3PO_ASSIGN_OR_RETURN(std::vector<TaskItem> of_file, ReadMmluCsv(file));
    std::move(of_file.begin(), of_file.end(), std::back_inserter(items));
  }
  return items;
}

// Fills in the items and what the format says of the task.
absl::Status ReadJsonLines(const std::string& path, const std::string& labels_file, Task* task) {
  C3PO_ASSIGN_OR_RETURN(const std::vector<NumberedLine> lines, ReadLines(path));
  if (lines.empty()) return absl::OkStatus();
  std::vector<NumberedLine> labels;
  if (!labels_file.empty()) {
    C3PO_ASSIGN_OR_RETURN(labels, ReadLines(labels_file));
    if (labels.size() != lines.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(labels_file, ": ", labels.size(), " labels for ", lines.size(), " questions"));
    }
  }
  const absl::StatusOr<const BenchmarkFormat*> format = DetectFormat(lines[0].text);
  if (!format.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", lines[0].number, ": ", format.status().message()));
  }
  task->kind = (*format)->kind;
  task->metric = (*format)->metric;
  for (size_t i = 0; i < lines.size(); ++i) {
    absl::StatusOr<TaskItem> item = (*format)->parse(lines[i].text, labels.empty() ? "" : labels[i].text);
    if (!item.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", lines[i].number, ": ", item.status().message()));
    }
    if (item->id.empty()) item->id = absl::StrCat(lines[i].number);
    if (i > 0 && item->choices.empty() != task->items[0].choices.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          path, ":", lines[i].number, ": \"choices\" must be in all lines or in none: a task is of one kind"));
    }
    task->items.push_back(*std::move(item));
  }
  if (task->items[0].choices.empty()) task->kind = TaskKind::kGeneration;
  if ((*format)->name == absl::string_view("arc") && path.find("asy") != std::string::npos) {
    task->metric = Metric::kRaw;  // The field reports ARC-Easy by raw accuracy, ARC-Challenge by normalized.
  }
  if ((*format)->name == absl::string_view("gsm8k")) {
    task->extraction = kLastNumberPattern;
    task->stop = {"Question:"};
  }
  return absl::OkStatus();
}

absl::Status ApplyOptions(const TaskFileOptions& options, Task* task) {
  if (task->kind == TaskKind::kGeneration) task->metric = Metric::kExactMatch;
  if (options.metric) {
    if ((*options.metric == Metric::kExactMatch) != (task->kind == TaskKind::kGeneration)) {
      return absl::InvalidArgumentError(absl::StrCat(task->file, ": metric ", MetricName(*options.metric),
                                                     " does not go with a task of ", TaskKindName(task->kind)));
    }
    task->metric = *options.metric;
  }
  if (options.extraction) task->extraction = *options.extraction;
  if (!options.stop.empty()) task->stop = options.stop;
  if (options.max_tokens) task->max_tokens = *options.max_tokens;
  if (task->kind == TaskKind::kGeneration && task->stop.empty()) task->stop = {"\n"};
  return absl::OkStatus();
}

// An id that is there twice gets a number behind it.
void MakeIdsUnique(std::vector<TaskItem>* items) {
  std::unordered_set<std::string> seen;
  for (TaskItem& item : *items) {
    const std::string id = item.id;
    for (int copy = 2; !seen.insert(item.id).second; ++copy) item.id = absl::StrCat(id, "#", copy);
  }
}

}  // namespace

absl::StatusOr<Task> ReadTaskFile(const std::string& path, const TaskFileOptions& options) {
  Task task;
  task.file = path;
  task.name = options.name.empty() ? NameOf(path) : options.name;
  task.collection = task.name;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    task.metric = Metric::kRaw;
    C3PO_ASSIGN_OR_RETURN(task.items, ReadCsvFolder(path));
  } else if (fs::path(path).extension() == ".csv") {
    task.metric = Metric::kRaw;
    C3PO_ASSIGN_OR_RETURN(task.items, ReadMmluCsv(path));
  } else {
    C3PO_RETURN_IF_ERROR(ReadJsonLines(path, options.labels_file, &task));
  }
  if (task.items.empty()) return absl::InvalidArgumentError(absl::StrCat(path, ": holds no questions"));
  C3PO_RETURN_IF_ERROR(ApplyOptions(options, &task));
  MakeIdsUnique(&task.items);
  return task;
}

}  // namespace c3po
