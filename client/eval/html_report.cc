// The page is written from top to bottom, one function per section; a section that the run holds nothing for is left
// out.

#include "client/eval/html_report.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "client/eval/changed_answers.h"
#include "client/eval/offset_reading.h"
#include "client/eval/report_input.h"
#include "client/eval/report_plots.h"
#include "client/eval/report_reading.h"
#include "client/eval/report_style.h"
#include "client/eval/report_svg.h"
#include "client/eval/run_summary.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int kDistanceFifths = 5;

class Page {
 public:
  Page(const ReportInput& input, const RunSummary& summary)
      : input_(input), summary_(summary), colors_(ColorsOf(input)), lead_(LeadMethod(summary)) {
    if (lead_ != nullptr) changes_ = ChangesOf(input, summary.baseline, lead_->label);
  }

  std::string Render() {
    WriteHead();
    WriteReading();
    if (summary_.overall.items > 0) {
      WriteBeyondOffset();
      WriteOverview();
      WriteTasks();
      WriteOracle();
      WriteChanges();
      WriteCost();
    }
    WriteAblations();
    if (lead_ != nullptr) {
      WriteNeighbors();
      WriteItems();
    }
    WriteSettings();
    WriteReproduction();
    out_ += "</main>\n</body>\n</html>\n";
    return std::move(out_);
  }

 private:
  void WriteHead();
  void WriteReading();
  void WriteBeyondOffset();
  void WriteOverview();
  void WriteTasks();
  void WriteOracle();
  void WriteChanges();
  void WriteCost();
  void WriteAblations();
  void WriteNeighbors();
  void WriteItems();
  void WriteSettings();
  void WriteReproduction();

  void Heading(absl::string_view id, absl::string_view text) {
    absl::StrAppend(&out_, "<h2 id=\"", id, "\">", EscapeHtml(text), "</h2>\n");
  }
  void Paragraph(absl::string_view text) { absl::StrAppend(&out_, "<p>", EscapeHtml(text), "</p>\n"); }
  void Figure(absl::string_view caption, absl::string_view note, absl::string_view svg, bool wide) {
    if (svg.empty()) return;
    absl::StrAppend(&out_, "<figure", wide ? " class=\"wide\"" : "", "><figcaption>", EscapeHtml(caption));
    if (!note.empty()) absl::StrAppend(&out_, " <span class=\"soft\">", EscapeHtml(note), "</span>");
    absl::StrAppend(&out_, "</figcaption>\n", svg, "</figure>\n");
  }
  void Legend(const std::vector<MethodSummary>& methods);
  void ResultTable(const ScopeSummary& scope);
  // Cells are escaped here.
  void PlainTable(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows);

  const ReportInput& input_;
  const RunSummary& summary_;
  const MethodColors colors_;
  const MethodSummary* const lead_;  // may be null
  std::vector<ItemChange> changes_;  // of the lead method
  std::string out_;
};

std::string CountNote(const ScopeSummary& scope) {
  std::string note = absl::StrCat(scope.items, " questions");
  if (scope.tasks.size() > 1) absl::StrAppend(&note, " of ", scope.tasks.size(), " tasks");
  if (scope.left_out > 0) absl::StrAppend(&note, "; ", scope.left_out, " left out, not answered by every method");
  if (!scope.absent.empty()) absl::StrAppend(&note, "; not in every task: ", absl::StrJoin(scope.absent, ", "));
  return note;
}

void Page::Legend(const std::vector<MethodSummary>& methods) {
  out_ += "<div class=\"legend\">";
  for (const MethodSummary& method : methods) {
    const auto color = colors_.find(method.label);
    absl::StrAppend(&out_, "<span><i class=\"key ", color == colors_.end() ? "m0" : color->second, "\"></i>",
                    EscapeHtml(method.label), method.role == MethodRole::kOracle ? " (diamond)" : "", "</span>");
  }
  out_ += "</div>\n";
}

void Page::ResultTable(const ScopeSummary& scope) {
  out_ +=
      "<div class=\"scroll\"><table><thead><tr><th>method</th><th>right</th><th>accuracy, % [95 %]</th><th>difference, "
      "points "
      "[95 %]</th><th>improved</th><th>worsened</th><th>McNemar p</th><th>of oracle</th></tr></thead><tbody>\n";
  for (const MethodSummary& method : scope.methods) {
    const auto color = colors_.find(method.label);
    absl::StrAppend(&out_, "<tr><td><i class=\"key ", color == colors_.end() ? "m0" : color->second, "\"></i>",
                    EscapeHtml(method.label), "</td><td>", method.right, " / ", scope.items, "</td><td>",
                    FormatRate(method.accuracy), "</td>");
    if (method.paired) {
      const Estimate& difference = method.paired->difference;
      const char* css = difference.low > 0 ? " class=\"up\"" : difference.high < 0 ? " class=\"down\"" : "";
      absl::StrAppend(&out_, "<td", css, ">", FormatPoints(difference), "</td><td>", method.paired->improved,
                      "</td><td>", method.paired->worsened, "</td><td>",
                      EscapeHtml(FormatPValue(method.paired->mcnemar.p_value)), "</td><td>");
      if (method.paired->share_of_oracle) out_ += FormatShare(*method.paired->share_of_oracle);
      out_ += "</td></tr>\n";
    } else {
      out_ += "<td></td><td></td><td></td><td></td><td></td></tr>\n";
    }
  }
  out_ += "</tbody></table></div>\n";
  if (scope.versus.empty()) return;
  std::vector<std::vector<std::string>> rows;
  for (const VersusBaseline& versus : scope.versus) {
    const PairedComparison& paired = versus.paired;
    rows.push_back({absl::StrCat(versus.method, " against ", versus.baseline), FormatPoints(paired.difference),
                    absl::StrCat(paired.improved), absl::StrCat(paired.worsened),
                    FormatPValue(paired.mcnemar.p_value)});
  }
  PlainTable({"on the same questions", "difference, points [95 %]", "right only by the first", "only by the second",
              "McNemar p"},
             rows);
}

void Page::PlainTable(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows) {
  out_ += "<div class=\"scroll\"><table><thead><tr>";
  for (const std::string& cell : header) absl::StrAppend(&out_, "<th>", EscapeHtml(cell), "</th>");
  out_ += "</tr></thead><tbody>\n";
  for (const auto& row : rows) {
    out_ += "<tr>";
    for (const std::string& cell : row) absl::StrAppend(&out_, "<td>", EscapeHtml(cell), "</td>");
    out_ += "</tr>\n";
  }
  out_ += "</tbody></table></div>\n";
}

void Page::WriteHead() {
  std::string model = summary_.runs.front().model_name;
  if (model.empty()) model = "a c3po server";
  absl::StrAppend(&out_,
                  "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n<meta name=\"viewport\" "
                  "content=\"width=device-width, initial-scale=1\"/>\n<title>c3po eval: ",
                  EscapeHtml(model), "</title>\n<style>", kReportStyle, "</style>\n</head>\n<body>\n<main>\n");
  absl::StrAppend(&out_, "<h1>Evaluation of ", EscapeHtml(model), "</h1>\n<p class=\"soft\">");
  const ReportRun& run = summary_.runs.front();
  if (run.created_unix_seconds > 0) {
    absl::StrAppend(
        &out_,
        absl::FormatTime("%Y-%m-%d %H:%M UTC", absl::FromUnixSeconds(run.created_unix_seconds), absl::UTCTimeZone()),
        " &middot; ");
  }
  absl::StrAppend(&out_, input_.tasks.size(), " tasks &middot; ", input_.methods.size(), " methods &middot; ",
                  summary_.overall.items, " questions compared &middot; server ", EscapeHtml(run.server_version),
                  "</p>\n");
}

void Page::WriteReading() {
  // The marks follow the other sentences; they are told apart by their text, which ReadingOf shares with the text
  // tables.
  out_ += "<section class=\"reading\" aria-label=\"What the figures say\"><ul>\n";
  const std::vector<MarkReading> marks = ReadMarks(summary_);
  for (const std::string& sentence : ReadingOf(summary_)) {
    const auto mark = std::find_if(marks.begin(), marks.end(), [&](const auto& each) { return each.text == sentence; });
    absl::StrAppend(&out_, "<li>");
    if (mark != marks.end()) {
      absl::StrAppend(&out_,
                      mark->met ? "<span class=\"met\">&#10003;</span> " : "<span class=\"missed\">&#10007;</span> ");
    }
    absl::StrAppend(&out_, EscapeHtml(sentence), "</li>\n");
  }
  for (const std::string& note : summary_.notes) {
    absl::StrAppend(&out_, "<li class=\"soft\">Note: ", EscapeHtml(note), "</li>\n");
  }
  out_ += "</ul></section>\n";
}

void Page::WriteBeyondOffset() {
  if (summary_.labels.empty()) return;
  Heading("beyond", "Beyond the labels' offset");
  Paragraph(
      "A model that leans to a label gains accuracy from any shift away from it. AUC: the area under the curve of the "
      "choices' margin, which no shift changes. Remaining: the difference to the model alone once an offset is fitted "
      "after either.");
  const auto table = [this](const ScopeSummary& scope) {
    const std::vector<std::vector<std::string>> rows = BeyondOffsetRows(scope);
    if (rows.empty()) return;
    absl::StrAppend(&out_, "<h3>", EscapeHtml(scope.name), "</h3>\n");
    PlainTable(rows.front(), {rows.begin() + 1, rows.end()});
  };
  table(summary_.overall);
  if (summary_.groups.size() > 1) {
    for (const ScopeSummary& group : summary_.groups) table(group);
  }
  if (summary_.tasks.size() > 1) {
    for (const ScopeSummary& task : summary_.tasks) table(task);
  }
  out_ += "<details><summary>Labels and their offsets</summary>\n";
  const std::vector<std::vector<std::string>> labels = LabelRows(summary_.labels);
  PlainTable(labels.front(), {labels.begin() + 1, labels.end()});
  out_ += "</details>\n";
}

void Page::WriteOverview() {
  Heading("accuracy", "Accuracy by method");
  Paragraph(
      "Dots: the share of questions answered right. Bars: the 95 % interval. Dashed: the model alone. Only questions "
      "that "
      "every method answered are compared.");
  out_ += "<div class=\"panels\">\n";
  Figure(summary_.overall.name, CountNote(summary_.overall), PlotAccuracy(summary_.overall, colors_), false);
  if (summary_.groups.size() > 1) {
    for (const ScopeSummary& group : summary_.groups) {
      Figure(group.name, CountNote(group), PlotAccuracy(group, colors_), false);
    }
  }
  out_ += "</div>\n";
  absl::StrAppend(&out_, "<h3>", EscapeHtml(summary_.overall.name), "</h3>\n");
  ResultTable(summary_.overall);
  if (summary_.groups.size() < 2) return;
  for (const ScopeSummary& group : summary_.groups) {
    absl::StrAppend(&out_, "<h3>", EscapeHtml(group.name), "</h3>\n<p class=\"soft\">", EscapeHtml(CountNote(group)),
                    "</p>\n");
    ResultTable(group);
  }
}

void Page::WriteTasks() {
  if (summary_.tasks.size() < 2) return;
  Heading("tasks", "By task");
  out_ += "<div class=\"panels\">\n";
  for (const ScopeSummary& task : summary_.tasks) {
    const std::string note = task.group.empty() ? CountNote(task) : absl::StrCat(task.group, ", ", CountNote(task));
    Figure(task.name, note, PlotAccuracy(task, colors_), false);
  }
  out_ += "</div>\n<details><summary>Tables of each task</summary>\n";
  for (const ScopeSummary& task : summary_.tasks) {
    absl::StrAppend(&out_, "<h3>", EscapeHtml(task.name), "</h3>\n<p class=\"soft\">", EscapeHtml(CountNote(task)),
                    "</p>\n");
    if (!task.methods.empty()) ResultTable(task);
  }
  out_ += "</details>\n";
}

void Page::WriteOracle() {
  const std::string plot = PlotLiftAgainstOracle(summary_.tasks, colors_);
  if (plot.empty()) return;
  Heading("oracle", "Lift against the oracle's");
  Paragraph(
      "The oracle optimizes on the question's own answer: what re-mixing could give if the neighbors told as much as "
      "the "
      "answer does. A dot near the diamond uses that headroom; a dot left of 0 harms.");
  std::vector<MethodSummary> shown;
  for (const MethodSummary& method : summary_.overall.methods) {
    if (method.role == MethodRole::kOptimization || method.role == MethodRole::kOracle) shown.push_back(method);
  }
  Legend(shown);
  Figure("Points over the model alone, by task", "", plot, true);
}

void Page::WriteChanges() {
  const std::string plot = PlotChanges(summary_.overall);
  if (plot.empty()) return;
  Heading("changes", "Improved and worsened");
  Paragraph("Questions that the model alone got wrong and the method right, and the reverse.");
  out_ += "<div class=\"panels\">\n";
  Figure("By method", summary_.tasks.size() > 1 ? "all tasks" : "", plot, false);
  if (lead_ != nullptr && summary_.tasks.size() > 1) {
    Figure(lead_->label, "by task", PlotChangesByTask(summary_.tasks, lead_->label), false);
  }
  out_ += "</div>\n";
}

void Page::WriteCost() {
  Heading("cost", "Cost");
  Paragraph("Seconds are wall-clock as the client saw them, retrieval, optimization and answer included.");
  Figure("Accuracy against time", "up and to the left is better", PlotCost(summary_.overall, colors_), true);
  std::vector<std::vector<std::string>> rows;
  for (const MethodSummary& method : summary_.overall.methods) {
    rows.push_back({method.label, FormatSeconds(method.mean_seconds), FormatSeconds(method.median_seconds),
                    FormatSeconds(method.mean_optimization_seconds), absl::StrFormat("%.0f", method.mean_tokens)});
  }
  PlainTable({"method", "seconds, mean", "median", "of it optimization", "tokens"}, rows);
}

void Page::WriteAblations() {
  if (summary_.ablations.empty()) return;
  Heading("ablations", "Ablations");
  Paragraph("One setting is varied, all others stay. Band: the 95 % interval of the difference to the baseline.");
  for (const AblationSummary& ablation : summary_.ablations) {
    if (ablation.scopes.front().items == 0) {
      Paragraph(absl::StrCat(ablation.ablation.name, ": no question has been answered at all of its points yet."));
      continue;
    }
    Figure(ablation.ablation.name, CountNote(ablation.scopes.front()), PlotAblation(ablation), true);
    absl::StrAppend(&out_, "<details><summary>Table of ", EscapeHtml(ablation.ablation.name), "</summary>\n");
    for (const ScopeSummary& scope : ablation.scopes) {
      absl::StrAppend(&out_, "<h3>", EscapeHtml(scope.name), "</h3>\n");
      std::vector<std::vector<std::string>> rows;
      for (const AblationPoint& point : ablation.ablation.points) {
        const MethodSummary* method = scope.Find(point.method);
        if (method == nullptr) continue;
        const auto& paired = method->paired;
        rows.push_back({point.label, method->label, FormatRate(method->accuracy),
                        paired ? FormatPoints(paired->difference) : "", paired ? absl::StrCat(paired->improved) : "",
                        paired ? absl::StrCat(paired->worsened) : "",
                        paired ? FormatPValue(paired->mcnemar.p_value) : "", FormatSeconds(method->mean_seconds)});
      }
      PlainTable(
          {ablation.ablation.variable.empty() ? "point" : ablation.ablation.variable, "method", "accuracy, % [95 %]",
           "difference, points [95 %]", "improved", "worsened", "McNemar p", "s per question"},
          rows);
    }
    out_ += "</details>\n";
  }
}

void Page::WriteNeighbors() {
  const std::string distance = PlotNeighborDistance(changes_), losses = PlotLosses(changes_);
  if (distance.empty() && losses.empty() && lead_->gates.empty()) return;
  Heading("neighbors", absl::StrCat("Neighbors, loss and gate of ", lead_->label));
  Figure("Distance of the nearest neighbor",
         "above: unchanged answers; below: improved and worsened, on their own scale", distance, true);
  std::vector<std::pair<double, const ItemChange*>> by_distance;
  for (const ItemChange& item : changes_) {
    const auto& distances = item.after->neighbor_distances;
    if (!distances.empty()) by_distance.emplace_back(distances.front(), &item);
  }
  if (by_distance.size() >= 5 * kDistanceFifths) {
    std::sort(by_distance.begin(), by_distance.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    std::vector<std::vector<std::string>> rows;
    for (int fifth = 0; fifth < kDistanceFifths; ++fifth) {
      const size_t from = by_distance.size() * fifth / kDistanceFifths;
      const size_t to = by_distance.size() * (fifth + 1) / kDistanceFifths;
      int64_t improved = 0, worsened = 0;
      for (size_t i = from; i < to; ++i) {
        improved += by_distance[i].second->change == Change::kImproved;
        worsened += by_distance[i].second->change == Change::kWorsened;
      }
      const double net = static_cast<double>(improved - worsened) / static_cast<double>(to - from);
      rows.push_back({absl::StrFormat("%.3f to %.3f", by_distance[from].first, by_distance[to - 1].first),
                      absl::StrCat(to - from), absl::StrCat(improved), absl::StrCat(worsened), FormatPoints(net)});
    }
    PlainTable({"distance, by fifths", "questions", "improved", "worsened", "net points"}, rows);
  }
  Figure("The neighbors' loss", "below the dashed line it fell", losses, true);
  if (lead_->with_losses > 0) {
    Paragraph(absl::StrFormat("Mean %.3f at the start, %.3f after the last step; it fell for %d of %d questions.",
                              lead_->mean_loss_before, lead_->mean_loss_after, lead_->loss_fell, lead_->with_losses));
  }
  std::vector<std::vector<std::string>> gates;
  for (const MethodSummary& method : summary_.overall.methods) {
    for (const auto& [decision, count] : method.gates) {
      gates.push_back(
          {method.label, decision, absl::StrCat(count),
           absl::StrFormat("%.1f %%", 100.0 * static_cast<double>(count) /
                                          static_cast<double>(std::max<int64_t>(1, summary_.overall.items)))});
    }
  }
  if (gates.empty()) return;
  out_ += "<h3>Decisions of the gate</h3>\n";
  PlainTable({"method", "decision", "questions", "share"}, gates);
}

void Page::WriteItems() {
  const std::string changed = ChangedAnswers(input_, changes_);
  if (changed.empty()) return;
  Heading("items", absl::StrCat("Changed answers of ", lead_->label));
  out_ += changed;
}

void Page::WriteSettings() {
  Heading("settings", "Settings");
  out_ +=
      "<div class=\"scroll\"><table class=\"left\"><thead><tr><th>task</th><th>group</th><th>kind</th><th>metric</th>"
      "<th>questions</th><th>references</th><th>file</th></tr></thead><tbody>\n";
  for (const ReportTask& task : input_.tasks) {
    out_ += "<tr>";
    for (const std::string& cell :
         {task.name, task.group, task.kind, task.metric, absl::StrCat(task.items), task.collection, task.file}) {
      absl::StrAppend(&out_, "<td>", EscapeHtml(cell), "</td>");
    }
    out_ += "</tr>\n";
  }
  out_ += "</tbody></table></div>\n";
  for (const ReportMethod& method : input_.methods) {
    absl::StrAppend(&out_, "<details><summary>", EscapeHtml(method.label), " (", EscapeHtml(method.kind),
                    ")</summary><pre>",
                    EscapeHtml(method.optimization.empty() ? "no optimization options" : method.optimization),
                    "</pre></details>\n");
  }
  if (input_.collections.empty()) return;
  Paragraph("What a method leaves open, its collection's settings say, for the baselines' neighbors too:");
  for (const ReportCollection& collection : input_.collections) {
    absl::StrAppend(&out_, "<details><summary>collection ", EscapeHtml(collection.name), "</summary><pre>",
                    EscapeHtml(collection.optimization), "</pre></details>\n");
  }
}

void Page::WriteReproduction() {
  Heading("reproduce", "How to make this again");
  for (const ReportRun& run : summary_.runs) {
    absl::StrAppend(&out_, "<pre>",
                    EscapeHtml(run.command_line.empty() ? "(command line not recorded)" : run.command_line),
                    "</pre>\n");
    PlainTable({"of", "value"}, {{"run folder", run.folder},
                                 {"model", run.model_name},
                                 {"model digest", run.model_digest},
                                 {"embedder", run.embedder_name},
                                 {"embedder digest", run.embedder_digest},
                                 {"server version", run.server_version},
                                 {"seed", run.seed}});
    if (!run.server.empty()) {
      absl::StrAppend(&out_, "<details><summary>All that the server said of itself</summary><pre>",
                      EscapeHtml(run.server), "</pre></details>\n");
    }
  }
  out_ += "<h3>How the figures are made</h3>\n";
  Paragraph(
      "Accuracy counts a question right by its task's metric. Intervals, 95 %: Wilson's (1927) for accuracies, "
      "Newcombe's (1998, method 10) for differences, which are paired by question. "
      "McNemar's "
      "test on the improved and worsened: exact below 25 of them, else chi-square with continuity correction; p is not "
      "corrected for the number of methods. Pooled figures weigh every question alike. The method that marks and plots "
      "of "
      "single questions are about is the one with the largest lift on these same questions, hence slightly flattered.");
  if (summary_.labels.empty()) return;
  Paragraph(
      "Of tasks whose questions share their choices: majority is the label of most references; batch-offset takes the "
      "mean of the choices' scores over the questions out; label-offset scales and shifts the model's scores by "
      "logistic regression on the scored references. Remaining refits that offset to each method's own scores of other "
      "questions, in ten folds. AUC is Mann and Whitney's over the questions of either label, the mean over pairs of "
      "labels, with intervals and paired test by DeLong (1988).");
}

}  // namespace

absl::StatusOr<std::string> RenderHtmlReport(absl::Span<const std::string> folders) {
  C3PO_ASSIGN_OR_RETURN(const ReportInput input, ReadRunFolders(folders));
  const RunSummary summary = Summarize(input);
  return Page(input, summary).Render();
}

absl::StatusOr<std::string> RenderHtmlReport(absl::string_view folder) {
  const std::vector<std::string> folders = {std::string(folder)};
  return RenderHtmlReport(folders);
}

absl::Status WriteHtmlReport(absl::Span<const std::string> folders, const std::string& file) {
  C3PO_ASSIGN_OR_RETURN(const std::string html, RenderHtmlReport(folders));
  return WriteFileDurably(file, html);
}

absl::Status WriteHtmlReport(absl::string_view folder, const std::string& file) {
  const std::vector<std::string> folders = {std::string(folder)};
  return WriteHtmlReport(folders, file);
}

}  // namespace c3po
