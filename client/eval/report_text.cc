// The tables of a run as text: one list of rows, written with spaces, as Markdown, or as JSON.

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "client/eval/offset_reading.h"
#include "client/eval/report_reading.h"
#include "client/eval/run_summary.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;
using Rows = std::vector<std::vector<std::string>>;  // the first is the header

// The columns before this one are names, the others figures.
constexpr size_t kNameColumns = 1;

Rows RowsOf(const ScopeSummary& scope) {
  Rows rows = {{"method", "right", "accuracy [95 %]", "difference [95 %]", "improved / worsened", "McNemar p",
                "of oracle", "s/item", "median", "optimization s", "tokens"}};
  for (const MethodSummary& method : scope.methods) {
    std::vector<std::string> row = {method.label, absl::StrCat(method.right, "/", scope.items),
                                    FormatRate(method.accuracy)};
    if (method.paired) {
      const PairedComparison& paired = *method.paired;
      row.insert(row.end(), {FormatPoints(paired.difference), absl::StrCat(paired.improved, " / ", paired.worsened),
                             FormatPValue(paired.mcnemar.p_value),
                             paired.share_of_oracle ? FormatShare(*paired.share_of_oracle) : "-"});
    } else {
      row.insert(row.end(), {"-", "-", "-", "-"});
    }
    row.insert(row.end(),
               {FormatSeconds(method.mean_seconds), FormatSeconds(method.median_seconds),
                FormatSeconds(method.mean_optimization_seconds), absl::StrFormat("%.0f", method.mean_tokens)});
    rows.push_back(std::move(row));
  }
  return rows;
}

// What optimizes against what reads the same neighbors without it.
Rows VersusRowsOf(const ScopeSummary& scope) {
  Rows rows = {{"against", "difference [95 %]", "improved / worsened", "McNemar p"}};
  for (const VersusBaseline& versus : scope.versus) {
    const PairedComparison& paired = versus.paired;
    rows.push_back({absl::StrCat(versus.method, " against ", versus.baseline), FormatPoints(paired.difference),
                    absl::StrCat(paired.improved, " / ", paired.worsened), FormatPValue(paired.mcnemar.p_value)});
  }
  return rows;
}

std::string TitleOf(const ScopeSummary& scope) {
  std::string title = absl::StrCat(scope.name, ": ", scope.items, " items compared");
  if (scope.tasks.size() > 1) absl::StrAppend(&title, ", ", scope.tasks.size(), " tasks");
  if (scope.left_out > 0) absl::StrAppend(&title, "; ", scope.left_out, " left out (not answered by all methods)");
  if (!scope.absent.empty()) absl::StrAppend(&title, "; not in every task: ", absl::StrJoin(scope.absent, ", "));
  return title;
}

// Code points, as a terminal counts columns for the texts that occur here.
size_t Width(const std::string& text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::string FixedWidth(const Rows& rows) {
  std::vector<size_t> widths(rows.front().size(), 0);
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], Width(row[i]));
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line = " ";
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string padding(widths[i] - Width(row[i]), ' ');
      absl::StrAppend(&line, i == 0 ? " " : "  ", i < kNameColumns ? row[i] + padding : padding + row[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&out, line, "\n");
  }
  return out;
}

std::string Markdown(const Rows& rows) {
  std::string out;
  for (size_t i = 0; i < rows.size(); ++i) {
    out += "|";
    for (const std::string& cell : rows[i]) absl::StrAppend(&out, " ", absl::StrReplaceAll(cell, {{"|", "\\|"}}), " |");
    out += "\n";
    if (i > 0) continue;
    for (size_t column = 0; column < rows[0].size(); ++column) out += column == 0 ? "|---|" : "---:|";
    out += "\n";
  }
  return out;
}

// visit(scope, title) for each table in reading order. A group or a total of one task would repeat that task's table.
template <typename Visitor>
void ForEachScope(const RunSummary& summary, Visitor&& visit_each) {
  // A scope with the tasks and methods of another, such as a group that holds every task, would be the same table.
  std::set<std::string> shown;
  const auto visit = [&](const ScopeSummary& scope, const std::string& title) {
    std::string content = absl::StrJoin(scope.tasks, "\n");
    for (const MethodSummary& method : scope.methods) absl::StrAppend(&content, "\n\n", method.label);
    if (scope.methods.empty() || shown.insert(content).second) visit_each(scope, title);
  };
  if (summary.overall.tasks.size() != 1) visit(summary.overall, TitleOf(summary.overall));
  for (const ScopeSummary& group : summary.groups) {
    if (group.tasks.size() > 1) visit(group, absl::StrCat("group ", TitleOf(group)));
  }
  for (const ScopeSummary& task : summary.tasks) visit(task, absl::StrCat("task ", TitleOf(task)));
  for (const AblationSummary& ablation : summary.ablations) {
    for (const ScopeSummary& scope : ablation.scopes) {
      visit(scope, absl::StrCat("ablation ", ablation.ablation.name, ", ", TitleOf(scope)));
    }
  }
}

Json ToJson(const Estimate& estimate) {
  return {{"value", estimate.value}, {"low", estimate.low}, {"high", estimate.high}};
}

void AddPaired(const PairedComparison& paired, Json* json) {
  (*json)["difference"] = ToJson(paired.difference);
  (*json)["improved"] = paired.improved;
  (*json)["worsened"] = paired.worsened;
  (*json)["mcnemar_p"] = paired.mcnemar.p_value;
  (*json)["mcnemar_exact"] = paired.mcnemar.exact;
}

// Keys are left out for figures that do not exist.
void AddBeyond(const ScopeSummary& scope, const MethodSummary& method, Json* json) {
  const BeyondOffset& beyond = method.beyond;
  if (beyond.auc) (*json)["auc"] = ToJson(*beyond.auc);
  if (beyond.auc_difference) {
    (*json)["auc_difference"] = ToJson(beyond.auc_difference->difference);
    (*json)["auc_difference"]["p"] = beyond.auc_difference->p_value;
  }
  if (beyond.accuracy) (*json)["accuracy_after_offset"] = ToJson(*beyond.accuracy);
  if (beyond.remaining) AddPaired(*beyond.remaining, &(*json)["remaining"]);
  if (const std::optional<LiftParts> parts = LiftPartsOf(scope, method)) {
    Json& lift = (*json)["lift"];
    lift = {{"value", parts->lift},
            {"offset_alone", parts->offset_alone},
            {"offset_from_references", parts->from_references}};
    if (parts->share) lift["offset_share"] = *parts->share;
  }
}

Json ToJson(const std::optional<LabelOffset>& offset) {
  return offset ? Json{{"scale", offset->scale}, {"offsets", offset->offsets}} : Json(nullptr);
}

Json ToJson(const std::vector<TaskLabels>& labels) {
  Json list = Json::array();
  for (const TaskLabels& task : labels) {
    list.push_back({{"task", task.task},
                    {"labels", task.labels},
                    {"references", task.references},
                    {"scored", task.scored},
                    {"unfitted", ToJson(task.unfitted)},
                    {"fitted", ToJson(task.fitted)}});
  }
  return list;
}

Json ToJson(const ScopeSummary& scope) {
  Json methods = Json::array(), versus = Json::array();
  for (const MethodSummary& method : scope.methods) {
    Json json = {{"label", method.label},
                 {"right", method.right},
                 {"accuracy", ToJson(method.accuracy)},
                 {"mean_seconds", method.mean_seconds},
                 {"median_seconds", method.median_seconds},
                 {"mean_optimization_seconds", method.mean_optimization_seconds},
                 {"mean_tokens", method.mean_tokens},
                 {"gates", method.gates},
                 {"items_with_losses", method.with_losses},
                 {"items_whose_loss_fell", method.loss_fell},
                 {"mean_loss_before", method.mean_loss_before},
                 {"mean_loss_after", method.mean_loss_after}};
    if (method.paired) {
      AddPaired(*method.paired, &json);
      if (method.paired->share_of_oracle) json["share_of_oracle"] = *method.paired->share_of_oracle;
    }
    AddBeyond(scope, method, &json);
    methods.push_back(std::move(json));
  }
  for (const VersusBaseline& each : scope.versus) {
    Json json = {{"method", each.method}, {"baseline", each.baseline}};
    AddPaired(each.paired, &json);
    versus.push_back(std::move(json));
  }
  return {{"name", scope.name},         {"group", scope.group},          {"items", scope.items},
          {"left_out", scope.left_out}, {"tasks", scope.tasks},          {"labelled", scope.labelled},
          {"absent", scope.absent},     {"methods", std::move(methods)}, {"versus", std::move(versus)}};
}

Json ToJson(const std::vector<ScopeSummary>& scopes) {
  Json list = Json::array();
  for (const ScopeSummary& scope : scopes) list.push_back(ToJson(scope));
  return list;
}

}  // namespace

std::string RenderText(const RunSummary& summary) {
  std::string out;
  for (const ReportRun& run : summary.runs) {
    absl::StrAppend(&out, run.folder, ": model ", run.model_name, " ", run.model_digest.substr(0, 19), ", server ",
                    run.server_version, "\n");
  }
  for (const std::string& sentence : ReadingOf(summary)) absl::StrAppend(&out, sentence, "\n");
  ForEachScope(summary, [&out](const ScopeSummary& scope, const std::string& title) {
    absl::StrAppend(&out, "\n", title, "\n");
    if (!scope.methods.empty()) out += FixedWidth(RowsOf(scope));
    if (const Rows beyond = BeyondOffsetRows(scope); !beyond.empty()) absl::StrAppend(&out, "\n", FixedWidth(beyond));
    if (!scope.versus.empty()) absl::StrAppend(&out, "\n", FixedWidth(VersusRowsOf(scope)));
  });
  if (!summary.labels.empty())
    absl::StrAppend(&out, "\nlabels and their offsets\n", FixedWidth(LabelRows(summary.labels)));
  for (const std::string& note : summary.notes) absl::StrAppend(&out, "\nNote: ", note, "\n");
  return out;
}

std::string RenderMarkdown(const RunSummary& summary) {
  std::string out;
  for (const std::string& sentence : ReadingOf(summary)) absl::StrAppend(&out, "- ", sentence, "\n");
  ForEachScope(summary, [&out](const ScopeSummary& scope, const std::string& title) {
    absl::StrAppend(&out, "\n**", title, "**\n\n");
    if (!scope.methods.empty()) out += Markdown(RowsOf(scope));
    if (const Rows beyond = BeyondOffsetRows(scope); !beyond.empty()) absl::StrAppend(&out, "\n", Markdown(beyond));
    if (!scope.versus.empty()) absl::StrAppend(&out, "\n", Markdown(VersusRowsOf(scope)));
  });
  if (!summary.labels.empty()) {
    absl::StrAppend(&out, "\n**labels and their offsets**\n\n", Markdown(LabelRows(summary.labels)));
  }
  for (const std::string& note : summary.notes) absl::StrAppend(&out, "\nNote: ", note, "\n");
  for (const ReportRun& run : summary.runs) {
    absl::StrAppend(&out, "\nModel `", run.model_name, "` (`", run.model_digest, "`), embedder `", run.embedder_name,
                    "` (`", run.embedder_digest, "`), server ", run.server_version, ", seed ", run.seed,
                    ". Made by\n\n```\n", run.command_line, "\n```\n");
  }
  return out;
}

std::string RenderJson(const RunSummary& summary) {
  Json runs = Json::array(), ablations = Json::array();
  for (const ReportRun& run : summary.runs) {
    runs.push_back({{"folder", run.folder},
                    {"created_unix_seconds", run.created_unix_seconds},
                    {"model", run.model_name},
                    {"model_digest", run.model_digest},
                    {"embedder", run.embedder_name},
                    {"embedder_digest", run.embedder_digest},
                    {"server_version", run.server_version},
                    {"seed", run.seed},
                    {"command_line", run.command_line}});
  }
  for (const AblationSummary& each : summary.ablations) {
    Json points = Json::array();
    for (const AblationPoint& point : each.ablation.points) {
      Json json = {{"label", point.label}, {"method_label", point.method}};
      if (point.value) json["value"] = *point.value;
      points.push_back(std::move(json));
    }
    ablations.push_back({{"name", each.ablation.name},
                         {"variable", each.ablation.variable},
                         {"points", std::move(points)},
                         {"scopes", ToJson(each.scopes)}});
  }
  const Json json = {{"runs", std::move(runs)},
                     {"baseline", summary.baseline},
                     {"reading", ReadingOf(summary)},
                     {"overall", ToJson(summary.overall)},
                     {"groups", ToJson(summary.groups)},
                     {"tasks", ToJson(summary.tasks)},
                     {"ablations", std::move(ablations)},
                     {"labels", ToJson(summary.labels)},
                     {"notes", summary.notes}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

}  // namespace c3po
