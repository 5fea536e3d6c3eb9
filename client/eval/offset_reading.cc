#include "client/eval/offset_reading.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/eval/report_reading.h"

namespace c3po {
namespace {

std::string FormatSigned(double value) {
  const double rounded = std::round(1000 * value) / 1000;
  return rounded == 0 ? "0.000" : absl::StrFormat("%+.3f", rounded);  // Never "-0.000".
}

std::string ShareInWords(double share) {
  if (share >= 0.995) return "all of it is the labels' offset";
  if (share < 0.005) return "none of it is the labels' offset";
  return absl::StrCat(FormatShare(share), " of it is the labels' offset");
}

std::string LiftSentence(const MethodSummary& method, const LiftParts& parts) {
  const std::string offset = absl::StrCat(parts.from_references ? "An offset fitted to the references' labels"
                                                                : "An offset fitted to the labels "
                                                                  "of other questions",
                                          " gains ", FormatPoints(parts.offset_alone), " without it");
  if (!parts.share) {
    return absl::StrCat(DisplayName(method), " has no lift: ", FormatPoints(parts.lift), " points. ", offset, ".");
  }
  return absl::StrCat("Of the lift of ", DisplayName(method), ", ", FormatPoints(parts.lift), " points, ",
                      ShareInWords(*parts.share), ". ", offset, ".");
}

std::string RemainingSentence(const MethodSummary& method, const PairedComparison& remaining) {
  const BeyondVerdict verdict = VerdictOf(remaining);
  const char* words = verdict == BeyondVerdict::kLift   ? ": that much is beyond the labels' offset."
                      : verdict == BeyondVerdict::kLoss ? ": beyond the labels' offset, it is a loss."
                                                        : ": no lift beyond the labels' offset is shown.";
  return absl::StrCat("With an offset fitted after either, ", DisplayName(method), " is ",
                      FormatPoints(remaining.difference), " points from the model alone, ", remaining.improved,
                      " improved, ", remaining.worsened, " worsened", words);
}

std::string AucSentence(const MethodSummary& method, const Estimate& before, const Estimate& after,
                        const AucDifference& difference) {
  const char* words = difference.difference.low > 0    ? ": it orders the questions better."
                      : difference.difference.high < 0 ? ": it orders the questions worse."
                                                       : ". The interval includes 0: no difference is shown.";
  return absl::StrCat("Area under the curve of the choices' margin, which no offset changes: ",
                      absl::StrFormat("%.3f by the model alone, %.3f by ", before.value, after.value),
                      DisplayName(method), ", ", FormatAucDifference(difference.difference), ", p ",
                      FormatPValue(difference.p_value), words);
}

void AddMethod(const ScopeSummary& scope, const MethodSummary& method, std::vector<std::string>* sentences) {
  if (const std::optional<LiftParts> parts = LiftPartsOf(scope, method)) {
    sentences->push_back(LiftSentence(method, *parts));
  }
  const BeyondOffset& beyond = method.beyond;
  if (beyond.remaining) sentences->push_back(RemainingSentence(method, *beyond.remaining));
  const MethodSummary* baseline = scope.FindRole(MethodRole::kBaseline);
  if (beyond.auc && beyond.auc_difference && baseline != nullptr && baseline->beyond.auc) {
    sentences->push_back(AucSentence(method, *baseline->beyond.auc, *beyond.auc, *beyond.auc_difference));
  }
}

// Of methods that the server gave an offset: against the offset alone, answer by answer. `where`: ends the sentence.
void AddWithOffset(const ScopeSummary& scope, const std::string& where, std::vector<std::string>* sentences) {
  const MethodSummary* alone = scope.FindRole(MethodRole::kLabelOffset);
  for (const MethodSummary& method : scope.methods) {
    if (method.role == MethodRole::kLabelOffset && method.with_offset) alone = &method;
  }
  for (const VersusBaseline& versus : scope.versus) {
    const MethodSummary* method = scope.Find(versus.method);
    if (alone == nullptr || versus.baseline != alone->label || method == nullptr || !method->with_offset) continue;
    const BeyondVerdict verdict = VerdictOf(versus.paired);
    const char* words = verdict == BeyondVerdict::kLift   ? ": so much is beyond the labels' offset."
                        : verdict == BeyondVerdict::kLoss ? ": with the offset, re-mixing is a loss."
                                                          : ": no lift beyond the labels' offset is shown.";
    sentences->push_back(absl::StrCat(DisplayName(*method), " against the offset alone (", alone->label, "): ",
                                      FormatPoints(versus.paired.difference), " points, ", versus.paired.improved,
                                      " improved, ", versus.paired.worsened, " worsened", where, words));
  }
}

// Groups are asked where some of them were not asked by these methods, so that the whole has no figures of theirs.
void AddWithOffset(const RunSummary& summary, std::vector<std::string>* sentences) {
  AddWithOffset(summary.overall, "", sentences);
  if (!sentences->empty()) return;
  for (const ScopeSummary& group : summary.groups) {
    AddWithOffset(group, absl::StrCat(" on ", group.name), sentences);
  }
}

// Where the figures of single tasks show a difference.
void AddTasks(const RunSummary& summary, const MethodSummary& lead, std::vector<std::string>* sentences) {
  std::vector<std::string> more, less, better, worse;
  for (const ScopeSummary& task : summary.tasks) {
    const MethodSummary* method = task.Find(lead.label);
    if (method == nullptr || task.labelled.empty()) continue;
    if (const auto& remaining = method->beyond.remaining) {
      const std::string text = absl::StrCat(task.name, " ", FormatPoints(remaining->difference));
      if (VerdictOf(*remaining) == BeyondVerdict::kLift) more.push_back(text);
      if (VerdictOf(*remaining) == BeyondVerdict::kLoss) less.push_back(text);
    }
    if (const auto& auc = method->beyond.auc_difference) {
      const std::string text = absl::StrCat(task.name, " ", FormatAucDifference(auc->difference));
      if (auc->difference.low > 0) better.push_back(text);
      if (auc->difference.high < 0) worse.push_back(text);
    }
  }
  const auto add = [&](const char* what, const std::vector<std::string>& tasks) {
    if (!tasks.empty()) sentences->push_back(absl::StrCat(DisplayName(lead), what, absl::StrJoin(tasks, ", "), "."));
  };
  add(" gains beyond the labels' offset, the interval above 0, on: ", more);
  add(" loses beyond the labels' offset, the interval below 0, on: ", less);
  add(" orders questions better, the interval above 0, on: ", better);
  add(" orders questions worse, the interval below 0, on: ", worse);
}

std::string OffsetCell(const std::optional<LabelOffset>& offset, bool with_scale) {
  if (!offset) return "-";
  std::vector<std::string> parts;
  for (const double each : offset->offsets) parts.push_back(absl::StrFormat("%+.2f", each));
  const std::string offsets = absl::StrJoin(parts, ", ");
  return with_scale ? absl::StrFormat("x %.3g, %s", offset->scale, offsets) : offsets;
}

}  // namespace

std::optional<LiftParts> LiftPartsOf(const ScopeSummary& scope, const MethodSummary& method) {
  if (scope.labelled.empty() || !method.paired) return std::nullopt;
  LiftParts parts;
  parts.lift = method.paired->difference.value;
  const MethodSummary* offset = scope.FindRole(MethodRole::kLabelOffset);
  const MethodSummary* baseline = scope.FindRole(MethodRole::kBaseline);
  if (offset != nullptr && offset->paired) {
    parts.offset_alone = offset->paired->difference.value;
    parts.from_references = true;
  } else if (baseline != nullptr && baseline->beyond.accuracy) {
    parts.offset_alone = baseline->beyond.accuracy->value - baseline->accuracy.value;
  } else {
    return std::nullopt;
  }
  if (parts.lift > 0) {
    const double explained = std::min(parts.offset_alone, method.beyond.labelled_lift.value_or(parts.lift));
    parts.share = std::clamp(explained / parts.lift, 0.0, 1.0);
  }
  return parts;
}

BeyondVerdict VerdictOf(const PairedComparison& remaining) {
  if (remaining.difference.low > 0) return BeyondVerdict::kLift;
  return remaining.difference.high < 0 ? BeyondVerdict::kLoss : BeyondVerdict::kNoneShown;
}

std::vector<std::string> ReadOffset(const RunSummary& summary) {
  std::vector<std::string> sentences;
  const ScopeSummary& scope = summary.overall;
  const MethodSummary* lead = LeadMethod(summary);
  if (scope.items == 0 || scope.labelled.empty() || lead == nullptr) return sentences;
  AddWithOffset(summary, &sentences);
  AddMethod(scope, *lead, &sentences);
  AddTasks(summary, *lead, &sentences);
  for (const MethodSummary& method : scope.methods) {
    if (&method != lead && method.role == MethodRole::kOptimization) AddMethod(scope, method, &sentences);
  }
  return sentences;
}

std::string FormatAuc(const Estimate& estimate) {
  return absl::StrFormat("%.3f [%.3f, %.3f]", estimate.value, estimate.low, estimate.high);
}

std::string FormatAucDifference(const Estimate& estimate) {
  return absl::StrCat(FormatSigned(estimate.value), " [", FormatSigned(estimate.low), ", ", FormatSigned(estimate.high),
                      "]");
}

std::vector<std::vector<std::string>> BeyondOffsetRows(const ScopeSummary& scope) {
  std::vector<std::vector<std::string>> rows = {{"beyond the labels' offset", "AUC [95 %]", "AUC difference [95 %]",
                                                 "p", "lift", "offset alone", "of the lift", "accuracy after offset",
                                                 "remaining [95 %]", "improved / worsened", "McNemar p"}};
  for (const MethodSummary& method : scope.methods) {
    const BeyondOffset& beyond = method.beyond;
    if (!beyond.auc && !beyond.accuracy) continue;
    std::vector<std::string> row = {method.label, beyond.auc ? FormatAuc(*beyond.auc) : "-"};
    if (beyond.auc_difference) {
      row.push_back(FormatAucDifference(beyond.auc_difference->difference));
      row.push_back(FormatPValue(beyond.auc_difference->p_value));
    } else {
      row.insert(row.end(), {"-", "-"});
    }
    if (const std::optional<LiftParts> parts = LiftPartsOf(scope, method)) {
      row.insert(row.end(), {FormatPoints(parts->lift), FormatPoints(parts->offset_alone),
                             parts->share ? FormatShare(*parts->share) : "-"});
    } else {
      row.insert(row.end(), {"-", "-", "-"});
    }
    row.push_back(beyond.accuracy ? FormatRate(*beyond.accuracy) : "-");
    if (beyond.remaining) {
      row.insert(row.end(), {FormatPoints(beyond.remaining->difference),
                             absl::StrCat(beyond.remaining->improved, " / ", beyond.remaining->worsened),
                             FormatPValue(beyond.remaining->mcnemar.p_value)});
    } else {
      row.insert(row.end(), {"-", "-", "-"});
    }
    rows.push_back(std::move(row));
  }
  return rows.size() > 1 ? rows : std::vector<std::vector<std::string>>();
}

std::vector<std::vector<std::string>> LabelRows(const std::vector<TaskLabels>& labels) {
  std::vector<std::vector<std::string>> rows = {
      {"task", "labels", "references", "scored", "offsets without labels", "fitted scale and offsets"}};
  for (const TaskLabels& task : labels) {
    rows.push_back({task.task, absl::StrJoin(task.labels, ", "),
                    task.references.empty() ? "-" : absl::StrJoin(task.references, " / "), absl::StrCat(task.scored),
                    OffsetCell(task.unfitted, /*with_scale=*/false), OffsetCell(task.fitted, /*with_scale=*/true)});
  }
  return rows;
}

}  // namespace c3po
