#include <algorithm>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/eval/task_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

bool Holds(absl::Span<const std::string> list, const std::string& text) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

// Every wanted name must be one of those that the suite has.
absl::Status CheckKnown(const std::string& path, const char* what, absl::Span<const std::string> wanted,
                        const std::set<std::string>& known) {
  for (const std::string& name : wanted) {
    if (known.count(name) == 0) {
      return absl::NotFoundError(
          absl::StrCat(path, ": no ", what, " ", name, "; there are ", absl::StrJoin(known, ", ")));
    }
  }
  return absl::OkStatus();
}

// Throws what nlohmann throws for a field of another type.
absl::StatusOr<Task> ReadEntry(const std::string& folder, const Json& entry) {
  TaskFileOptions options;
  options.name = entry.at("name").get<std::string>();
  if (entry.contains("metric")) {
    C3PO_ASSIGN_OR_RETURN(options.metric, ParseMetric(entry["metric"].get<std::string>()));
  }
  if (entry.contains("extraction")) options.extraction = entry["extraction"].get<std::string>();
  if (entry.contains("stop")) options.stop = entry["stop"].get<std::vector<std::string>>();
  if (entry.contains("max_tokens")) options.max_tokens = entry["max_tokens"].get<int>();
  const std::string heldout = entry.value("heldout_file", absl::StrCat(options.name, "/heldout.jsonl"));
  C3PO_ASSIGN_OR_RETURN(Task task, ReadTaskFile(absl::StrCat(folder, "/", heldout), options));
  task.group = entry.value("group", "");
  task.collection = entry.value("collection", task.name);
  task.references_file =
      absl::StrCat(folder, "/", entry.value("references_file", absl::StrCat(options.name, "/references.jsonl")));
  return task;
}

}  // namespace

absl::StatusOr<std::vector<Task>> ReadSuite(const std::string& folder, absl::Span<const std::string> names,
                                            absl::Span<const std::string> groups) {
  const std::string path = absl::StrCat(folder, "/suite.json");
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  try {
    const Json suite = Json::parse(text);
    std::set<std::string> known_names, known_groups;
    for (const Json& entry : suite.at("tasks")) {
      known_names.insert(entry.at("name").get<std::string>());
      known_groups.insert(entry.value("group", ""));
    }
    C3PO_RETURN_IF_ERROR(CheckKnown(path, "task", names, known_names));
    C3PO_RETURN_IF_ERROR(CheckKnown(path, "group", groups, known_groups));
    std::vector<Task> tasks;
    for (const Json& entry : suite.at("tasks")) {
      const bool wanted = (names.empty() && groups.empty()) || Holds(names, entry["name"].get<std::string>()) ||
                          Holds(groups, entry.value("group", ""));
      if (!wanted) continue;
      C3PO_ASSIGN_OR_RETURN(tasks.emplace_back(), ReadEntry(folder, entry));
    }
    return tasks;
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.what()));
  }
}

}  // namespace c3po
