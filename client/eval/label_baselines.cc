#include "client/eval/label_baselines.h"

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/eval/choice_metrics.h"
#include "client/eval/choice_scores.h"
#include "client/eval/label_task.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

Metric MetricOf(const ReportInput& input, const std::string& task) {
  const ReportTask* found = input.FindTask(task);
  return found == nullptr ? Metric::kPerToken : ParseMetric(found->metric).value_or(Metric::kPerToken);
}

// The references of one task.
struct LabelledReferences {
  std::vector<int64_t> counts;  // by label
  LabelScores scored;
  std::vector<std::string> prompts;           // of `scored`
  std::multimap<std::string, int> by_prompt;  // the label of each, scored or not
};

LabelledReferences ReferencesOf(const TaskLabels& labels, Metric metric, absl::Span<const ReferenceScore> references) {
  LabelledReferences of_task;
  of_task.counts.assign(labels.labels.size(), 0);
  of_task.scored.labels = labels.labels.size();
  std::set<std::string> seen;
  for (const ReferenceScore& reference : references) {
    if (reference.answer.task != labels.task || !seen.insert(reference.answer.id).second) continue;
    const auto of_choices = LabelsOfChoices(labels.labels, reference.choices);
    const int label = LabelOfAnswer(labels.labels, reference.choices[reference.answer.gold]);
    if (!of_choices || label < 0) continue;
    const std::string prompt(absl::StripAsciiWhitespace(reference.prompt));
    ++of_task.counts[label];
    of_task.by_prompt.emplace(prompt, label);
    if (AppendLabelRow(reference.answer, metric, *of_choices, &of_task.scored)) of_task.prompts.push_back(prompt);
  }
  return of_task;
}

std::optional<LabelOffset> FitOrNone(const LabelScores& scores) {
  absl::StatusOr<LabelOffset> fitted = FitLabelOffset(scores);  // Fails without references.
  if (!fitted.ok()) return std::nullopt;
  return *std::move(fitted);
}

LabelScores Without(const LabelledReferences& references, const std::string& prompt) {
  LabelScores kept;
  kept.labels = references.scored.labels;
  for (size_t i = 0; i < references.prompts.size(); ++i) {
    if (references.prompts[i] == prompt) continue;
    const absl::Span<const double> row = references.scored.row(i);
    kept.scores.insert(kept.scores.end(), row.begin(), row.end());
    kept.gold.push_back(references.scored.gold[i]);
  }
  return kept;
}

// -1 where there are no references.
int MajorityOf(const std::vector<int64_t>& counts) {
  const auto most = std::max_element(counts.begin(), counts.end());
  return most == counts.end() || *most == 0 ? -1 : static_cast<int>(most - counts.begin());
}

// Makes the rows of one run.
class Baselines {
 public:
  Baselines(absl::Span<const ReferenceScore> references, std::string base, ReportInput* input)
      : references_(references), base_(std::move(base)), input_(*input) {
    for (const ItemResult& item : input->items) {
      if (item.method == base_) own_[item.task].push_back(item);
    }
  }

  void Add() {
    for (const ReportTask& task : input_.tasks) {
      if (own_.count(task.name) > 0) FindLabels(task.name);
    }
    for (TaskLabels& labels : input_.labels) AddTask(&labels);
    AddNotes();
    for (const auto& [label, role] :
         {std::pair(kMajorityLabel, MethodRole::kMajority), std::pair(kBatchOffsetLabel, MethodRole::kBatchOffset),
          std::pair(kLabelOffsetLabel, MethodRole::kLabelOffset)}) {
      AddRow(std::string(label), role);
    }
  }

 private:
  const QuestionText* Question(const ItemResult& item) const { return input_.FindQuestion(item.task, item.id); }

  void FindLabels(const std::string& task) {
    std::vector<std::vector<std::string>> choices;
    for (const ItemResult& item : own_[task]) {
      const QuestionText* question = Question(item);
      if (question == nullptr) return;  // A run of an earlier version: its choices are not known.
      choices.push_back(question->choices);
    }
    TaskLabels labels;
    labels.task = task;
    labels.labels = SharedLabels(choices);
    if (labels.labels.empty()) {
      unlabelled_.push_back(task);
    } else {
      input_.labels.push_back(std::move(labels));
    }
  }

  void AddTask(TaskLabels* labels) {
    const Metric metric = MetricOf(input_, labels->task);
    const std::vector<ItemResult>& own = own_[labels->task];
    LabelScores scores;
    scores.labels = labels->labels.size();
    for (const ItemResult& item : own) {
      const auto of_choices = LabelsOfChoices(labels->labels, Question(item)->choices);
      if (!of_choices || !AppendLabelRow(item, metric, *of_choices, &scores)) return;
    }
    const LabelledReferences references = ReferencesOf(*labels, metric, references_);
    labels->references = references.counts;
    labels->scored = static_cast<int64_t>(references.scored.texts());
    labels->fitted = FitOrNone(references.scored);
    const absl::StatusOr<LabelOffset> unfitted = BatchLabelOffset(scores.labels, scores.scores);
    if (unfitted.ok()) labels->unfitted = *unfitted;
    for (size_t i = 0; i < own.size(); ++i) {
      AddAnswers(own[i], scores.row(i), *labels, references);
    }
  }

  void AddAnswers(const ItemResult& own, absl::Span<const double> scores, const TaskLabels& labels,
                  const LabelledReferences& references) {
    if (labels.unfitted) {
      Judge(own, std::string(kBatchOffsetLabel), ChooseLabel(*labels.unfitted, scores), labels);
    }
    std::vector<int64_t> counts = references.counts;
    std::optional<LabelOffset> fitted = labels.fitted;
    const std::string prompt(absl::StripAsciiWhitespace(Question(own)->prompt));
    const auto [from, to] = references.by_prompt.equal_range(prompt);
    for (auto same = from; same != to; ++same) --counts[same->second];
    if (from != to) fitted = FitOrNone(Without(references, prompt));
    if (const int majority = MajorityOf(counts); majority >= 0) {
      Judge(own, std::string(kMajorityLabel), majority, labels);
    }
    if (fitted) Judge(own, std::string(kLabelOffsetLabel), ChooseLabel(*fitted, scores), labels);
  }

  void Judge(const ItemResult& own, const std::string& method, int label, const TaskLabels& labels) {
    const auto of_choices = LabelsOfChoices(labels.labels, Question(own)->choices);
    const auto choice = std::find(of_choices->begin(), of_choices->end(), label);
    ItemResult item;
    item.task = own.task;
    item.id = own.id;
    item.method = method;
    TaskItem question;
    question.gold = own.gold;
    JudgePrediction(question, static_cast<int>(choice - of_choices->begin()), &item);
    if (method != kMajorityLabel) CopyCost(own, &item);
    made_[method].push_back(std::move(item));
  }

  static void CopyCost(const ItemResult& own, ItemResult* item) {
    item->seconds = own.seconds;
    item->prefill_seconds = own.prefill_seconds;
    item->queue_seconds = own.queue_seconds;
    item->prompt_tokens = own.prompt_tokens;
    item->completion_tokens = own.completion_tokens;
  }

  // A method of the run that has the row's name keeps it.
  void AddRow(const std::string& label, MethodRole role) {
    std::vector<ItemResult>& made = made_[label];
    if (made.empty() || input_.FindMethod(label) != nullptr) return;
    for (const std::string& task : unlabelled_) {
      for (ItemResult item : own_[task]) {
        item.method = label;
        item.log_likelihoods.clear();
        made.push_back(std::move(item));
      }
    }
    input_.methods.push_back({label, "baseline", "", role});
    input_.items.insert(input_.items.end(), std::make_move_iterator(made.begin()), std::make_move_iterator(made.end()));
  }

  void AddNotes() {
    if (!unlabelled_.empty()) {
      input_.notes.push_back(
          absl::StrCat("The questions of ", absl::StrJoin(unlabelled_, ", "),
                       " do not share their choices: they have no labels, so there is no offset to take out.",
                       input_.labels.empty() ? "" : " Majority and offsets are the model's own answers there."));
    }
    std::vector<std::string> without;
    for (const TaskLabels& labels : input_.labels) {
      if (!labels.fitted) without.push_back(labels.task);
    }
    if (without.empty()) return;
    input_.notes.push_back(absl::StrCat("No reference's labels were scored for ", absl::StrJoin(without, ", "),
                                        ": the row ", kLabelOffsetLabel, " is missing there (--offset-references)."));
  }

  const absl::Span<const ReferenceScore> references_;
  const std::string base_;
  ReportInput& input_;
  std::map<std::string, std::vector<ItemResult>> own_;   // the model's own answers, by task
  std::map<std::string, std::vector<ItemResult>> made_;  // by row
  std::vector<std::string> unlabelled_;                  // tasks
};

}  // namespace

bool IsLabelBaseline(absl::string_view label) {
  return label == kMajorityLabel || label == kBatchOffsetLabel || label == kLabelOffsetLabel;
}

bool AppendLabelRow(const ItemResult& answer, Metric metric, absl::Span<const int> of_choices, LabelScores* scores) {
  const size_t labels = of_choices.size();
  if (answer.log_likelihoods.size() != labels || answer.byte_counts.size() != labels ||
      answer.token_counts.size() != labels || answer.gold < 0 || static_cast<size_t>(answer.gold) >= labels) {
    return false;
  }
  const std::vector<double> by_choice = ChoiceScores(answer, metric);
  const size_t at = scores->scores.size();
  scores->scores.resize(at + labels);
  for (size_t i = 0; i < labels; ++i) scores->scores[at + of_choices[i]] = by_choice[i];
  scores->gold.push_back(of_choices[answer.gold]);
  return true;
}

std::optional<LabelScores> LabelScoresOf(const ReportInput& input, const std::string& task,
                                         absl::Span<const ItemResult* const> answers) {
  const TaskLabels* labels = input.FindLabels(task);
  if (labels == nullptr) return std::nullopt;
  const Metric metric = MetricOf(input, task);
  LabelScores scores;
  scores.labels = labels->labels.size();
  for (const ItemResult* answer : answers) {
    const QuestionText* question = input.FindQuestion(task, answer->id);
    if (question == nullptr) return std::nullopt;
    const auto of_choices = LabelsOfChoices(labels->labels, question->choices);
    if (!of_choices || !AppendLabelRow(*answer, metric, *of_choices, &scores)) return std::nullopt;
  }
  return scores;
}

void AddLabelBaselines(const std::vector<ReferenceScore>& references, ReportInput* input) {
  const auto base = std::find_if(input->methods.begin(), input->methods.end(),
                                 [](const ReportMethod& method) { return method.role == MethodRole::kBaseline; });
  if (base == input->methods.end()) return;
  Baselines(references, base->label, input).Add();
}

absl::Status WriteLabelBaselines(const std::string& folder) {
  C3PO_ASSIGN_OR_RETURN(const ReportInput input, ReadRunFolders({folder}));
  std::string text;
  for (const ItemResult& item : input.items) {
    const ReportMethod* method = input.FindMethod(item.method);
    if (method != nullptr && method->kind == "baseline") absl::StrAppend(&text, ToJsonLine(item), "\n");
  }
  return WriteFileDurably(absl::StrCat(folder, "/baselines.jsonl"), text);
}

}  // namespace c3po
