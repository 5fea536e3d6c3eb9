// How a run is summed up: items are laid out as task -> id -> method, each scope picks its methods and then the ids
// that all of them answered, and every figure of the scope is taken over those ids alone.

#include "client/eval/run_summary.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "client/eval/label_baselines.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

// Above this many methods the points of ablations stay out of the main tables in any case.
constexpr size_t kMethodsMaxInMainTables = 8;

bool ReadsReferencesOnly(MethodRole role) {
  return role == MethodRole::kInContext || role == MethodRole::kNeighborVote || role == MethodRole::kLabelOffset;
}

PairedComparison ComparisonOf(const PairedOutcomes& outcomes) {
  PairedComparison paired;
  paired.difference = PairedDifference(outcomes);
  paired.improved = outcomes.improved;
  paired.worsened = outcomes.worsened;
  paired.mcnemar = McNemarTest(outcomes.improved, outcomes.worsened);
  return paired;
}

class Summarizer {
 public:
  explicit Summarizer(const ReportInput& input) : input_(input) {
    for (const ItemResult& item : input.items) answers_[item.task][item.id][item.method] = &item;
  }

  // Methods are given baseline first.
  ScopeSummary SummarizeScope(std::string name, const std::vector<std::string>& tasks,
                              const std::vector<const ReportMethod*>& methods) const;

  bool HasItems(const std::string& task) const { return answers_.count(task) > 0; }

  bool TakesPart(const std::string& task, const std::string& method) const {
    const auto found = answers_.find(task);
    if (found == answers_.end()) return false;
    return std::any_of(found->second.begin(), found->second.end(),
                       [&](const auto& by_id) { return by_id.second.count(method) > 0; });
  }

 private:
  struct Compared {
    std::string task;
    std::vector<const std::map<std::string, const ItemResult*>*> items;  // by method
  };

  MethodSummary SummarizeMethod(const ReportMethod& method, const std::string& baseline,
                                absl::Span<const Compared> compared) const;
  // Of one method over the compared questions.
  struct Corrected {
    std::vector<MarginAuc> auc;  // of the tasks of labels that have one
    std::vector<bool> right;     // by question, with the offset fitted after the method
  };
  // Absent where a question of a task of labels has no scores.
  std::optional<Corrected> Correct(const std::string& method, absl::Span<const Compared> compared) const;
  // BeyondOffset::labelled_lift. Absent where an item lacks an answer of either.
  std::optional<double> LabelledLift(const std::string& method, const std::string& baseline,
                                     absl::Span<const Compared> compared, int64_t items) const;
  void AddBeyondOffset(const std::string& baseline, absl::Span<const Compared> compared, ScopeSummary* scope) const;

  // Null where an item lacks an answer of either.
  static std::optional<PairedComparison> Compare(const std::string& method, const std::string& baseline,
                                                 absl::Span<const Compared> compared);

  const ReportInput& input_;
  // Ordered, so that figures do not depend on the order in which answers came.
  std::map<std::string, std::map<std::string, std::map<std::string, const ItemResult*>>> answers_;
};

ScopeSummary Summarizer::SummarizeScope(std::string name, const std::vector<std::string>& tasks,
                                        const std::vector<const ReportMethod*>& methods) const {
  ScopeSummary scope;
  scope.name = std::move(name);
  for (const std::string& task : tasks) {
    if (HasItems(task)) scope.tasks.push_back(task);
  }
  for (const std::string& task : scope.tasks) {
    if (input_.FindLabels(task) != nullptr) scope.labelled.push_back(task);
  }
  std::vector<const ReportMethod*> present;
  for (const ReportMethod* method : methods) {
    // There they would be the model's own answers under three more names.
    if (scope.labelled.empty() && method->kind == "baseline") continue;
    const auto takes_part = [&](const std::string& task) { return TakesPart(task, method->label); };
    if (scope.tasks.empty() || std::none_of(scope.tasks.begin(), scope.tasks.end(), takes_part)) continue;
    if (std::all_of(scope.tasks.begin(), scope.tasks.end(), takes_part)) {
      present.push_back(method);
    } else {
      scope.absent.push_back(method->label);
    }
  }
  std::vector<Compared> compared;
  for (const std::string& task : scope.tasks) {
    Compared of_task{task, {}};
    for (const auto& [id, by_method] : answers_.at(task)) {
      const auto answered = [&by_method](const ReportMethod* method) { return by_method.count(method->label) > 0; };
      if (!present.empty() && std::all_of(present.begin(), present.end(), answered)) {
        of_task.items.push_back(&by_method);
      } else if (std::any_of(methods.begin(), methods.end(), answered)) {
        ++scope.left_out;
      }
    }
    scope.items += static_cast<int64_t>(of_task.items.size());
    compared.push_back(std::move(of_task));
  }
  for (const ReportMethod* method : present) {
    scope.methods.push_back(SummarizeMethod(*method, methods.front()->label, compared));
  }
  for (const ReportMethod* method : present) {
    if (method->role != MethodRole::kOptimization) continue;
    for (const ReportMethod* other : present) {
      if (!ReadsReferencesOnly(other->role)) continue;
      const auto compared_with = Compare(method->label, other->label, compared);
      if (compared_with) scope.versus.push_back({method->label, other->label, *compared_with});
    }
  }
  if (!present.empty()) AddBeyondOffset(methods.front()->label, compared, &scope);
  const MethodSummary* oracle = scope.FindRole(MethodRole::kOracle);
  const double bound = oracle != nullptr && oracle->paired ? oracle->paired->difference.value : 0;
  for (MethodSummary& method : scope.methods) {
    if (bound > 0 && method.paired) method.paired->share_of_oracle = method.paired->difference.value / bound;
  }
  return scope;
}

MethodSummary Summarizer::SummarizeMethod(const ReportMethod& method, const std::string& baseline,
                                          absl::Span<const Compared> compared) const {
  MethodSummary summary;
  summary.label = method.label;
  summary.role = method.role;
  summary.with_offset = method.with_offset;
  int64_t items = 0;
  std::vector<double> seconds, optimization_seconds, tokens, losses_before, losses_after;
  for (const Compared& task : compared) {
    items += static_cast<int64_t>(task.items.size());
    for (const auto* by_method : task.items) {
      const ItemResult& item = *by_method->at(method.label);
      summary.right += item.correct;
      seconds.push_back(item.seconds);
      optimization_seconds.push_back(item.optimization_seconds);
      tokens.push_back(item.prompt_tokens + item.completion_tokens);
      if (!item.gate.empty()) ++summary.gates[item.gate];
      if (item.losses.size() >= 2) {
        losses_before.push_back(item.losses.front());
        losses_after.push_back(item.losses.back());
        summary.loss_fell += item.losses.back() < item.losses.front();
      }
    }
  }
  summary.accuracy = Proportion(summary.right, items);
  if (method.label != baseline) summary.paired = Compare(method.label, baseline, compared);
  summary.mean_seconds = Mean(seconds);
  summary.median_seconds = Quantile(seconds, 0.5);
  summary.mean_optimization_seconds = Mean(optimization_seconds);
  summary.mean_tokens = Mean(tokens);
  summary.with_losses = static_cast<int64_t>(losses_before.size());
  summary.mean_loss_before = Mean(losses_before);
  summary.mean_loss_after = Mean(losses_after);
  return summary;
}

std::optional<Summarizer::Corrected> Summarizer::Correct(const std::string& method,
                                                         absl::Span<const Compared> compared) const {
  Corrected corrected;
  for (const Compared& task : compared) {
    std::vector<const ItemResult*> answers;
    for (const auto* by_method : task.items) {
      const auto found = by_method->find(method);
      if (found == by_method->end()) return std::nullopt;
      answers.push_back(found->second);
    }
    if (input_.FindLabels(task.task) == nullptr) {
      for (const ItemResult* answer : answers) corrected.right.push_back(answer->correct);
      continue;
    }
    const std::optional<LabelScores> scores = LabelScoresOf(input_, task.task, answers);
    if (!scores) return std::nullopt;
    if (std::optional<MarginAuc> auc = MeasureMarginAuc(*scores)) corrected.auc.push_back(*std::move(auc));
    const std::vector<bool> right = RightAfterOffset(*scores);
    corrected.right.insert(corrected.right.end(), right.begin(), right.end());
  }
  return corrected;
}

std::optional<double> Summarizer::LabelledLift(const std::string& method, const std::string& baseline,
                                               absl::Span<const Compared> compared, int64_t items) const {
  std::vector<Compared> labelled;
  int64_t questions = 0;
  for (const Compared& task : compared) {
    if (input_.FindLabels(task.task) == nullptr) continue;
    labelled.push_back(task);
    questions += static_cast<int64_t>(task.items.size());
  }
  const std::optional<PairedComparison> paired = Compare(method, baseline, labelled);
  if (!paired) return std::nullopt;
  return paired->difference.value * static_cast<double>(questions) / static_cast<double>(items);
}

void Summarizer::AddBeyondOffset(const std::string& baseline, absl::Span<const Compared> compared,
                                 ScopeSummary* scope) const {
  if (scope->labelled.empty() || scope->items == 0) return;
  const std::optional<Corrected> before = Correct(baseline, compared);
  for (MethodSummary& method : scope->methods) {
    if (method.label != baseline)
      method.beyond.labelled_lift = LabelledLift(method.label, baseline, compared, scope->items);
    const std::optional<Corrected> after = method.label == baseline ? before : Correct(method.label, compared);
    if (!after) continue;
    BeyondOffset& beyond = method.beyond;
    if (!after->auc.empty()) beyond.auc = PoolMarginAuc(after->auc);
    beyond.accuracy = Proportion(std::count(after->right.begin(), after->right.end(), true), scope->items);
    if (!before || method.label == baseline) continue;
    if (!after->auc.empty()) beyond.auc_difference = CompareMarginAuc(after->auc, before->auc);
    PairedOutcomes outcomes;
    outcomes.items = scope->items;
    for (size_t i = 0; i < after->right.size(); ++i) {
      outcomes.right += after->right[i];
      outcomes.improved += after->right[i] && !before->right[i];
      outcomes.worsened += !after->right[i] && before->right[i];
    }
    beyond.remaining = ComparisonOf(outcomes);
  }
}

std::optional<PairedComparison> Summarizer::Compare(const std::string& method, const std::string& baseline,
                                                    absl::Span<const Compared> compared) {
  PairedOutcomes outcomes;
  for (const Compared& task : compared) {
    for (const auto* by_method : task.items) {
      const auto after = by_method->find(method), before = by_method->find(baseline);
      if (after == by_method->end() || before == by_method->end()) return std::nullopt;
      ++outcomes.items;
      outcomes.right += after->second->correct;
      outcomes.improved += after->second->correct && !before->second->correct;
      outcomes.worsened += !after->second->correct && before->second->correct;
    }
  }
  return ComparisonOf(outcomes);
}

// The main tables' methods, baseline first.
std::vector<const ReportMethod*> MainMethods(const ReportInput& input) {
  std::set<std::string> points;
  for (const Ablation& ablation : input.ablations) {
    for (const AblationPoint& point : ablation.points) points.insert(point.method);
  }
  std::vector<const ReportMethod*> all, main;
  size_t asked = 0, asked_in_main = 0;  // without the rows that the report makes
  for (const ReportMethod& method : input.methods) {
    const bool is_asked = method.kind != "baseline";
    asked += is_asked;
    asked_in_main += is_asked && points.count(method.label) == 0;
    auto place = method.role == MethodRole::kBaseline ? all.begin() : all.end();
    all.insert(place, &method);
    if (method.role == MethodRole::kBaseline) {
      main.insert(main.begin(), &method);
    } else if (points.count(method.label) == 0) {
      main.push_back(&method);
    }
  }
  return asked_in_main < 2 && asked <= kMethodsMaxInMainTables ? all : main;
}

// The baseline, then each point's method once.
std::vector<const ReportMethod*> MethodsOf(const Ablation& ablation, const ReportInput& input,
                                           const ReportMethod* baseline) {
  std::vector<const ReportMethod*> methods = {baseline};
  for (const AblationPoint& point : ablation.points) {
    const ReportMethod* method = input.FindMethod(point.method);
    if (method != nullptr && std::find(methods.begin(), methods.end(), method) == methods.end()) {
      methods.push_back(method);
    }
  }
  return methods;
}

}  // namespace

const MethodSummary* ScopeSummary::Find(absl::string_view label) const {
  const auto found =
      std::find_if(methods.begin(), methods.end(), [&](const auto& each) { return each.label == label; });
  return found == methods.end() ? nullptr : &*found;
}

const MethodSummary* ScopeSummary::FindRole(MethodRole role) const {
  const auto found = std::find_if(methods.begin(), methods.end(), [&](const auto& each) { return each.role == role; });
  return found == methods.end() ? nullptr : &*found;
}

RunSummary Summarize(const ReportInput& input) {
  RunSummary summary;
  summary.runs = input.runs;
  summary.labels = input.labels;
  summary.notes = input.notes;
  summary.overall.name = "all tasks";
  const std::vector<const ReportMethod*> methods = MainMethods(input);
  if (methods.empty()) return summary;
  summary.baseline = methods.front()->label;

  const Summarizer summarizer(input);
  std::vector<std::string> all_tasks, group_names;
  std::map<std::string, std::vector<std::string>> group_tasks;
  for (const ReportTask& task : input.tasks) {
    summary.tasks.push_back(summarizer.SummarizeScope(task.name, {task.name}, methods));
    summary.tasks.back().group = task.group;
    all_tasks.push_back(task.name);
    if (task.group.empty() || !summarizer.HasItems(task.name)) continue;
    if (group_tasks.count(task.group) == 0) group_names.push_back(task.group);
    group_tasks[task.group].push_back(task.name);
  }
  summary.overall = summarizer.SummarizeScope("all tasks", all_tasks, methods);
  if (summary.overall.tasks.size() == 1) summary.overall.name = summary.overall.tasks.front();
  for (const ReportMethod& method : input.methods) {
    const auto answers = [&](const std::string& task) { return summarizer.TakesPart(task, method.label); };
    if (!input.items.empty() && std::none_of(all_tasks.begin(), all_tasks.end(), answers)) {
      summary.notes.push_back(absl::StrCat("Method ", method.label, " answered no question."));
    }
  }
  for (const std::string& group : group_names) {
    summary.groups.push_back(summarizer.SummarizeScope(group, group_tasks[group], methods));
  }
  for (const Ablation& ablation : input.ablations) {
    AblationSummary of_ablation{ablation, {}};
    const std::vector<const ReportMethod*> points = MethodsOf(ablation, input, methods.front());
    of_ablation.scopes.push_back(summarizer.SummarizeScope("all tasks", all_tasks, points));
    if (group_names.size() > 1) {
      for (const std::string& group : group_names) {
        of_ablation.scopes.push_back(summarizer.SummarizeScope(group, group_tasks[group], points));
      }
    }
    summary.ablations.push_back(std::move(of_ablation));
  }
  return summary;
}

absl::StatusOr<RunSummary> SummarizeRun(absl::string_view folder) {
  C3PO_ASSIGN_OR_RETURN(const ReportInput input, ReadRunFolders({std::string(folder)}));
  return Summarize(input);
}

}  // namespace c3po
