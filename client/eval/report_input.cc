#include "client/eval/report_input.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/eval/label_baselines.h"
#include "client/eval/reference_scores.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int64_t kRunFileBytesMax = int64_t{4} << 30;

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace); }

// Reads fields of one JSON object; the first that is of another type is remembered in `status`.
class FieldReader {
 public:
  FieldReader(const Json& json, std::string path, absl::Status* status)
      : json_(json), path_(std::move(path)), status_(status) {
    if (!json.is_object()) Fail("", "is not an object");
  }

  template <typename T>
  void Read(const char* name, T* value, bool required = false) {
    const Json* found = Find(name);
    if (found == nullptr) {
      if (required) Fail(name, "is missing");
      return;
    }
    try {
      found->get_to(*value);
    } catch (const nlohmann::json::exception&) {
      Fail(name, "has another type");
    }
  }

  // Null where it is absent or null.
  const Json* Find(const char* name) const {
    if (!json_.is_object()) return nullptr;
    const auto found = json_.find(name);
    return found == json_.end() || found->is_null() ? nullptr : &*found;
  }

  std::string PathOf(absl::string_view name) const {
    return path_.empty() || name.empty() ? absl::StrCat(path_, name) : absl::StrCat(path_, ".", name);
  }

 private:
  void Fail(absl::string_view name, absl::string_view what) {
    if (status_->ok()) *status_ = absl::InvalidArgumentError(absl::StrCat("\"", PathOf(name), "\" ", what));
  }

  const Json& json_;
  const std::string path_;
  absl::Status* const status_;
};

// Calls visit(element, path) for each of a list; one object stands for a list of one.
template <typename Visitor>
void ForEach(const FieldReader& parent, const char* name, Visitor&& visit) {
  const Json* list = parent.Find(name);
  if (list == nullptr) return;
  if (!list->is_array()) return visit(*list, parent.PathOf(name));
  for (size_t i = 0; i < list->size(); ++i) visit((*list)[i], absl::StrCat(parent.PathOf(name), "[", i, "]"));
}

MethodRole RoleOf(const ReportMethod& method, const Json* optimization) {
  std::string name;
  if (optimization != nullptr && optimization->is_object()) name = optimization->value("method", "");
  if (method.kind == "icl") return MethodRole::kInContext;
  if (method.kind == "knn_vote") return MethodRole::kNeighborVote;
  if (name == "METHOD_ORACLE" || (name.empty() && absl::StartsWith(method.label, "oracle"))) return MethodRole::kOracle;
  if (name == "METHOD_NONE" && optimization->value("use_offset", false)) return MethodRole::kLabelOffset;
  if (name == "METHOD_NONE" || (name.empty() && method.label == "none")) return MethodRole::kBaseline;
  return MethodRole::kOptimization;
}

void ReadServer(const FieldReader& root, ReportRun* run, absl::Status* status) {
  const Json* server = root.Find("server");
  if (server == nullptr) return;
  run->server = Dump(*server);
  FieldReader fields(*server, "server", status);
  fields.Read("version", &run->server_version);
  if (const Json* model = fields.Find("model")) {
    FieldReader reader(*model, "server.model", status);
    reader.Read("name", &run->model_name);
    reader.Read("digest", &run->model_digest);
  }
  if (const Json* embedder = fields.Find("embedder")) {
    FieldReader reader(*embedder, "server.embedder", status);
    reader.Read("name", &run->embedder_name);
    reader.Read("digest", &run->embedder_digest);
  }
}

void AddTask(const Json& json, const std::string& path, ReportInput* input, absl::Status* status) {
  ReportTask task;
  FieldReader fields(json, path, status);
  fields.Read("name", &task.name, /*required=*/true);
  fields.Read("group", &task.group);
  fields.Read("kind", &task.kind);
  fields.Read("metric", &task.metric);
  fields.Read("items", &task.items);
  fields.Read("file", &task.file);
  fields.Read("collection", &task.collection);
  fields.Read("among_references", &task.among_references);
  fields.Read("asks_them", &task.asks_them);
  if (task.among_references > 0) {
    input->notes.push_back(absl::StrCat(
        "Task ", task.name, ": ", task.among_references, " questions are among the references of ", task.collection,
        task.asks_them ? "; they were asked, and what is gained on them says nothing of new questions."
                       : "; they were left out."));
  }
  if (input->FindTask(task.name) == nullptr) {
    input->tasks.push_back(std::move(task));
  } else {
    input->notes.push_back(absl::StrCat("Task ", task.name, " is in several runs; the last run's answers count."));
  }
}

void AddMethod(const Json& json, const std::string& path, ReportInput* input, absl::Status* status) {
  ReportMethod method;
  FieldReader fields(json, path, status);
  fields.Read("label", &method.label, /*required=*/true);
  fields.Read("kind", &method.kind);
  const Json* optimization = fields.Find("optimization");
  if (optimization != nullptr && !optimization->empty()) method.optimization = Dump(*optimization);
  method.role = RoleOf(method, optimization);
  method.with_offset = optimization != nullptr && optimization->is_object() && optimization->contains("use_offset") &&
                       (*optimization)["use_offset"] == true;
  const ReportMethod* known = input->FindMethod(method.label);
  if (known == nullptr) {
    input->methods.push_back(std::move(method));
  } else if (known->optimization != method.optimization) {
    input->notes.push_back(absl::StrCat("Method ", method.label,
                                        " has other settings in another run; those of the first ", "run are shown."));
  }
}

void AddCollection(const Json& json, const std::string& path, ReportInput* input, absl::Status* status) {
  ReportCollection collection;
  FieldReader fields(json, path, status);
  fields.Read("name", &collection.name, /*required=*/true);
  if (const Json* optimization = fields.Find("effective_optimization")) collection.optimization = Dump(*optimization);
  const auto known = std::find_if(input->collections.begin(), input->collections.end(),
                                  [&](const auto& each) { return each.name == collection.name; });
  if (known == input->collections.end()) {
    input->collections.push_back(std::move(collection));
  } else if (known->optimization != collection.optimization) {
    input->notes.push_back(absl::StrCat("Collection ", collection.name,
                                        " has other settings in another run; those of the first run are shown."));
  }
}

void AddAblation(const Json& json, const std::string& path, ReportInput* input, absl::Status* status) {
  Ablation ablation;
  FieldReader fields(json, path, status);
  fields.Read("name", &ablation.name, /*required=*/true);
  fields.Read("variable", &ablation.variable);
  ForEach(fields, "points", [&](const Json& element, const std::string& point_path) {
    AblationPoint point;
    FieldReader reader(element, point_path, status);
    const Json* value = reader.Find("value");
    if (value != nullptr && value->is_number()) point.value = value->get<double>();
    const Json* label = reader.Find("label");
    if (label != nullptr && label->is_string()) {
      point.label = label->get<std::string>();
    } else if (value != nullptr) {
      point.label = value->is_string() ? value->get<std::string>() : value->dump();
    }
    reader.Read("method_label", &point.method, /*required=*/true);
    ablation.points.push_back(std::move(point));
  });
  input->ablations.push_back(std::move(ablation));
}

absl::Status ReadRunJson(const std::string& folder, ReportInput* input) {
  const std::string path = absl::StrCat(folder, "/run.json");
  C3PO_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kRunFileBytesMax));
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(path, ": not JSON"));
  absl::Status status;
  ReportRun run;
  run.folder = folder;
  try {
    FieldReader root(json, "", &status);
    int version = 0;
    root.Read("version", &version, /*required=*/true);
    if (status.ok() && version != 1) {
      status = absl::InvalidArgumentError(absl::StrCat("\"version\" is ", version, "; only 1 is known"));
    }
    root.Read("created_unix_seconds", &run.created_unix_seconds);
    root.Read("command_line", &run.command_line);
    if (const Json* seed = root.Find("seed")) run.seed = seed->dump();
    ReadServer(root, &run, &status);
    ForEach(root, "tasks", [&](const Json& element, const std::string& at) { AddTask(element, at, input, &status); });
    ForEach(root, "methods",
            [&](const Json& element, const std::string& at) { AddMethod(element, at, input, &status); });
    ForEach(root, "collections",
            [&](const Json& element, const std::string& at) { AddCollection(element, at, input, &status); });
    ForEach(root, "ablation",
            [&](const Json& element, const std::string& at) { AddAblation(element, at, input, &status); });
  } catch (const nlohmann::json::exception& error) {
    status = absl::InvalidArgumentError(error.what());
  }
  if (!status.ok()) return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  input->runs.push_back(std::move(run));
  return absl::OkStatus();
}

// Where each item stands in ReportInput::items.
using ItemPlaces = std::unordered_map<std::string, size_t>;

absl::Status ReadItems(const std::string& folder, ReportInput* input, ItemPlaces* places) {
  const std::string path = absl::StrCat(folder, "/items.jsonl");
  const absl::StatusOr<std::string> text = ReadWholeFile(path, kRunFileBytesMax);
  if (absl::IsNotFound(text.status())) return absl::OkStatus();
  C3PO_RETURN_IF_ERROR(text.status());
  absl::string_view rest = *text;
  int64_t unknown = 0, not_finite = 0;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const size_t end = rest.find('\n');
    const absl::string_view line = rest.substr(0, end);
    const bool last = end == absl::string_view::npos || end + 1 == rest.size();
    rest.remove_prefix(end == absl::string_view::npos ? rest.size() : end + 1);
    if (line.empty()) continue;
    absl::StatusOr<ItemResult> item = ParseItemResult(line);
    if (absl::IsOutOfRange(item.status())) {
      ++not_finite;
      continue;
    }
    if (!item.ok()) {
      if (!last) {
        return absl::InvalidArgumentError(absl::StrCat(path, ":", number, ": ", item.status().message()));
      }
      input->notes.push_back(absl::StrCat("The last line of ", path, " is cut and was passed over."));
      continue;
    }
    if (input->FindTask(item->task) == nullptr || input->FindMethod(item->method) == nullptr) {
      ++unknown;
      continue;
    }
    const std::string key = absl::StrCat(item->task, "\n", item->id, "\n", item->method);
    const auto [place, added] = places->emplace(key, input->items.size());
    if (added) {
      input->items.push_back(*std::move(item));
    } else {
      input->items[place->second] = *std::move(item);
    }
  }
  if (not_finite > 0) {
    input->notes.push_back(absl::StrCat(not_finite, " lines of ", path,
                                        " hold null for a figure that was not a number; they count as failed."));
  }
  if (unknown > 0) {
    input->notes.push_back(absl::StrCat(unknown, " lines of ", path,
                                        " name a task or a method that run.json does not; ", "they were passed over."));
  }
  return absl::OkStatus();
}

void ReadTexts(const std::string& folder, ReportInput* input) {
  if (const auto text = ReadWholeFile(absl::StrCat(folder, "/questions.jsonl"), kRunFileBytesMax); text.ok()) {
    for (QuestionText& each : ParseQuestionTexts(*text)) {
      std::string key = absl::StrCat(each.task, "\n", each.id);
      input->questions[std::move(key)] = std::move(each);
    }
  }
  if (const auto text = ReadWholeFile(absl::StrCat(folder, "/references.jsonl"), kRunFileBytesMax); text.ok()) {
    for (ReferenceText& each : ParseReferenceTexts(*text)) {
      std::string key = each.id;
      input->references[std::move(key)] = std::move(each);
    }
  }
}

// Exactly one baseline: a second one is a method among others, and without any the first method serves.
void SettleBaseline(ReportInput* input) {
  bool found = false;
  for (ReportMethod& method : input->methods) {
    if (method.role != MethodRole::kBaseline) continue;
    if (found) method.role = MethodRole::kOptimization;
    found = true;
  }
  if (!found && !input->methods.empty()) {
    input->methods.front().role = MethodRole::kBaseline;
    input->notes.push_back(
        absl::StrCat("No method is \"none\": the others are compared with ", input->methods.front().label, "."));
  }
}

}  // namespace

const QuestionText* ReportInput::FindQuestion(absl::string_view task, absl::string_view id) const {
  const auto found = questions.find(absl::StrCat(task, "\n", id));
  return found == questions.end() ? nullptr : &found->second;
}

const ReferenceText* ReportInput::FindReference(const std::string& id) const {
  const auto found = references.find(id);
  return found == references.end() ? nullptr : &found->second;
}

const ReportTask* ReportInput::FindTask(absl::string_view name) const {
  const auto found = std::find_if(tasks.begin(), tasks.end(), [&](const auto& task) { return task.name == name; });
  return found == tasks.end() ? nullptr : &*found;
}

const ReportMethod* ReportInput::FindMethod(absl::string_view label) const {
  const auto found =
      std::find_if(methods.begin(), methods.end(), [&](const auto& method) { return method.label == label; });
  return found == methods.end() ? nullptr : &*found;
}

const TaskLabels* ReportInput::FindLabels(absl::string_view task) const {
  const auto found = std::find_if(labels.begin(), labels.end(), [&](const auto& each) { return each.task == task; });
  return found == labels.end() ? nullptr : &*found;
}

absl::StatusOr<ReportInput> ReadRunFolders(absl::Span<const std::string> folders) {
  if (folders.empty()) return absl::NotFoundError("no run folder given");
  ReportInput input;
  for (const std::string& folder : folders) C3PO_RETURN_IF_ERROR(ReadRunJson(folder, &input));
  ItemPlaces places;
  for (const std::string& folder : folders) C3PO_RETURN_IF_ERROR(ReadItems(folder, &input, &places));
  std::vector<ReferenceScore> scores;
  for (const std::string& folder : folders) {
    ReadTexts(folder, &input);
    for (ReferenceScore& score : ReadReferenceScores(folder)) scores.push_back(std::move(score));
  }
  AddLabelBaselines(scores, &input);
  SettleBaseline(&input);
  for (const ReportRun& run : input.runs) {
    if (run.model_digest == input.runs.front().model_digest) continue;
    input.notes.push_back(absl::StrCat("The runs are of different models: ", run.folder, " of ", run.model_name, ", ",
                                       input.runs.front().folder, " of ", input.runs.front().model_name, "."));
  }
  return input;
}

}  // namespace c3po
