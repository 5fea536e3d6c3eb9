#include "client/eval/run_folder.h"

#include <google/protobuf/util/json_util.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/eval/option_setting.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVersion = 1;

absl::Status FileError(const std::string& path, const char* what) {
  return absl::UnavailableError(absl::StrCat(path, ": cannot be ", what, ": ", std::strerror(errno)));
}

// A message as JSON with the .proto's names. Such messages always have a JSON form.
Json ToJson(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions print;
  print.preserve_proto_field_names = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(message, &text, print).ok()) text = "{}";
  return Json::parse(text);
}

Json TasksJson(const std::vector<Task>& tasks) {
  Json list = Json::array();
  for (const Task& task : tasks) {
    list.push_back({{"name", task.name},
                    {"group", task.group},
                    {"kind", TaskKindName(task.kind)},
                    {"metric", MetricName(task.metric)},
                    {"items", task.items.size()},
                    {"file", task.file},
                    {"collection", task.collection},
                    {"among_references", task.among_references},
                    {"asks_them", task.asks_them}});
  }
  return list;
}

Json MethodsJson(const std::vector<EvalMethod>& methods) {
  Json list = Json::array();
  for (const EvalMethod& method : methods) {
    Json entry = {
        {"label", method.label}, {"kind", MethodKindName(method.kind)}, {"optimization", ToJson(method.optimization)}};
    if (method.shots > 0) entry["shots"] = method.shots;
    if (!method.collection_suffix.empty()) entry["collection_suffix"] = method.collection_suffix;
    list.push_back(std::move(entry));
  }
  return list;
}

Json AblationJson(const AblationAxis& axis) {
  Json points = Json::array();
  for (const AxisPoint& point : axis.points) {
    Json value = point.value;
    if (double number = 0; absl::SimpleAtod(point.value, &number)) value = number;
    points.push_back({{"label", point.label}, {"value", value}, {"method_label", point.method_label}});
  }
  return {{"name", axis.name}, {"variable", axis.variable}, {"points", points}};
}

Json RunJson(const RunDescription& run) {
  Json json = {{"version", kVersion}, {"created_unix_seconds", run.created_unix_seconds}};
  json["server"] = {{"version", run.server.version()},
                    {"model", ToJson(run.server.model())},
                    {"embedder", ToJson(run.server.embedder())},
                    {"default_optimization", ToJson(run.server.default_optimization())}};
  json["tasks"] = TasksJson(run.tasks);
  json["methods"] = MethodsJson(run.methods);
  json["collections"] = Json::array();
  for (const auto& [name, options] : run.effective) {
    json["collections"].push_back({{"name", name}, {"effective_optimization", ToJson(options)}});
  }
  json["seed"] = run.seed ? Json(*run.seed) : Json(nullptr);
  json["command_line"] = run.command_line;
  if (run.ablation) json["ablation"] = AblationJson(*run.ablation);
  return json;
}

// Where the run in the folder is another one than the run that is wanted, in words; empty where it is the same.
std::vector<std::string> Differences(const Json& held, const Json& wanted) {
  std::vector<std::string> differences;
  const auto same = [&](const char* key) { return held.value(key, Json()) == wanted.value(key, Json()); };
  for (const char* key : {"version", "methods", "seed", "ablation"}) {
    if (!same(key)) differences.push_back(key);
  }
  // Runs of earlier versions do not say.
  if (held.contains("collections") && !same("collections")) differences.push_back("settings of the collections");
  const Json held_model = held.value(Json::json_pointer("/server/model/digest"), Json());
  if (held_model != wanted.value(Json::json_pointer("/server/model/digest"), Json())) differences.push_back("model");
  Json held_tasks = held.value("tasks", Json::array());
  Json wanted_tasks = wanted.at("tasks");
  bool fewer = false;
  for (size_t i = 0; i < std::min(held_tasks.size(), wanted_tasks.size()); ++i) {
    fewer = fewer || wanted_tasks[i].value("items", 0) < held_tasks[i].value("items", 0);
  }
  for (Json* tasks : {&held_tasks, &wanted_tasks}) {
    for (Json& task : *tasks) {
      for (const char* may_change : {"items", "among_references", "asks_them"}) task.erase(may_change);
    }
  }
  if (held_tasks != wanted_tasks) differences.push_back("tasks");
  if (fewer) differences.push_back("fewer questions");
  return differences;
}

// Empty where there is no such file.
std::string ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

absl::Status WriteText(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".tmp";
  {
    std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
    file << text;
    file.flush();
    if (!file) return FileError(temporary, "written");
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) return FileError(path, "written");
  return absl::OkStatus();
}

std::string KeyOf(const std::string& task, const std::string& id, const std::string& method) {
  return absl::StrCat(task, std::string(1, '\0'), id, std::string(1, '\0'), method);
}

// What is wanted now, after checking it against the run that the folder holds.
absl::StatusOr<Json> MergedRun(const std::string& path, const RunDescription& run) {
  Json wanted = RunJson(run);
  std::ifstream file(path, std::ios::binary);
  if (!file) return wanted;
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  const Json held = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!held.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": is not a JSON object"));
  try {
    const std::vector<std::string> differences = Differences(held, wanted);
    if (!differences.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": the folder holds another run; different: ", absl::StrJoin(differences, ", "),
                       ". Give another folder, or the flags of that run"));
    }
    wanted["created_unix_seconds"] = held.value("created_unix_seconds", run.created_unix_seconds);
    return wanted;
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.what()));
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<RunFolder>> RunFolder::Open(const std::string& path, const RunDescription& run) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return absl::UnavailableError(absl::StrCat(path, ": cannot be made: ", error.message()));
  std::unique_ptr<RunFolder> folder(new RunFolder(path));
  C3PO_ASSIGN_OR_RETURN(const Json json, MergedRun(path + "/run.json", run));
  C3PO_RETURN_IF_ERROR(folder->ReadItems());
  C3PO_RETURN_IF_ERROR(WriteText(path + "/run.json", json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n"));
  const std::string items = path + "/items.jsonl";
  folder->file_ = std::fopen(items.c_str(), "ab");
  if (folder->file_ == nullptr) return FileError(items, "written");
  C3PO_RETURN_IF_ERROR(folder->WriteQuestions(run.tasks));
  C3PO_RETURN_IF_ERROR(folder->OpenReferences());
  return folder;
}

RunFolder::~RunFolder() {
  if (file_ != nullptr) std::fclose(file_);
  if (references_ != nullptr) std::fclose(references_);
}

// Questions that only an earlier call had stay.
absl::Status RunFolder::WriteQuestions(const std::vector<Task>& tasks) {
  const std::string path = path_ + "/questions.jsonl";
  std::unordered_set<std::string> written;
  std::string text;
  const auto add = [&](const QuestionText& question) {
    if (written.insert(KeyOf(question.task, question.id, "")).second)
      absl::StrAppend(&text, ToJsonLine(question), "\n");
  };
  for (const Task& task : tasks) {
    for (const TaskItem& item : task.items) add(TextOf(task.name, item));
  }
  for (const QuestionText& question : ParseQuestionTexts(ReadText(path))) add(question);
  return WriteText(path, text);
}

// Written anew, so that a line which a kill cut short does not swallow the next.
absl::Status RunFolder::OpenReferences() {
  const std::string path = path_ + "/references.jsonl";
  std::string text;
  for (const ReferenceText& reference : ParseReferenceTexts(ReadText(path))) {
    if (known_references_.insert(reference.id).second) absl::StrAppend(&text, ToJsonLine(reference), "\n");
  }
  C3PO_RETURN_IF_ERROR(WriteText(path, text));
  references_ = std::fopen(path.c_str(), "ab");
  return references_ == nullptr ? FileError(path, "written") : absl::OkStatus();
}

absl::Status RunFolder::ReadItems() {
  const std::string path = path_ + "/items.jsonl";
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::OkStatus();
  const std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  size_t number = 0;
  size_t at = 0;
  for (size_t end = text.find('\n'); end != std::string::npos; at = end + 1, end = text.find('\n', at)) {
    ++number;
    absl::StatusOr<ItemResult> result = ParseItemResult(absl::string_view(text).substr(at, end - at));
    if (absl::IsOutOfRange(result.status())) continue;  // No answer: it is asked again.
    if (!result.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", result.status().message()));
    }
    if (held_.insert(KeyOf(result->task, result->id, result->method)).second) results_.push_back(*std::move(result));
  }
  resumed_ = results_.size();
  // What stands behind the last newline was cut by a kill; its question is asked again.
  if (at < text.size() && truncate(path.c_str(), static_cast<off_t>(at)) != 0) return FileError(path, "truncated");
  return absl::OkStatus();
}

bool RunFolder::Holds(const std::string& task, const std::string& id, const std::string& method) const {
  return held_.count(KeyOf(task, id, method)) > 0;
}

absl::Status RunFolder::Append(const ItemResult& result) {
  const std::string line = ToJsonLine(result) + "\n";
  if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() || std::fflush(file_) != 0) {
    return FileError(path_ + "/items.jsonl", "written");
  }
  for (const ReferenceText& reference : result.neighbor_texts) {
    if (!known_references_.insert(reference.id).second) continue;
    const std::string text = ToJsonLine(reference) + "\n";
    if (std::fwrite(text.data(), 1, text.size(), references_) != text.size() || std::fflush(references_) != 0) {
      return FileError(path_ + "/references.jsonl", "written");
    }
  }
  if (held_.insert(KeyOf(result.task, result.id, result.method)).second) {
    results_.push_back(result);
    results_.back().neighbor_texts.clear();
  }
  return absl::OkStatus();
}

}  // namespace c3po
