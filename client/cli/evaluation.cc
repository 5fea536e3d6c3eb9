#include "client/cli/evaluation.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "client/cli/request_flags.h"
#include "client/cli/run_output.h"
#include "client/cli/tune_offset.h"
#include "client/eval/collection_import.h"
#include "client/eval/effective_settings.h"
#include "client/eval/evaluator.h"
#include "client/eval/known_questions.h"
#include "client/eval/label_baselines.h"
#include "client/eval/reference_scoring.h"
#include "client/eval/sample_line.h"
#include "client/eval/task_file.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr size_t kPrintedErrorsMax = 20;

std::string DefaultSuite() {
  const char* cache = std::getenv("C3PO_CACHE_DIR");
  if (cache != nullptr && *cache != '\0') return absl::StrCat(cache, "/suite");
  const char* home = std::getenv("HOME");
  return absl::StrCat(home == nullptr ? "." : home, "/.cache/c3po/suite");
}

absl::StatusOr<TaskFileOptions> FileOptions(const EvaluationFlags& flags) {
  TaskFileOptions options;
  options.labels_file = flags.labels_file;
  options.stop = flags.stop;
  options.max_tokens = flags.max_tokens;
  if (!flags.extraction.empty()) options.extraction = flags.extraction;
  if (!flags.metric.empty()) {
    C3PO_ASSIGN_OR_RETURN(options.metric, ParseMetric(flags.metric));
  }
  return options;
}

// Shows answers as they come: a running accuracy per method, and when the run will be done.
class LiveProgress : public EvaluationListener {
 public:
  LiveProgress(const Terminal& terminal, const RunDescription& run, const RunFolder& folder)
      : total_(MissingAnswers(run, folder)), progress_(terminal, "answers", total_), start_(absl::Now()) {
    for (const EvalMethod& method : run.methods) labels_.push_back(method.label);
    for (const ItemResult& result : folder.results()) Count(result);
  }

  void OnResult(const ItemResult& result) override {
    Count(result);
    for (const std::string& warning : result.warnings) ++warnings_[absl::StrCat(result.task, ": ", warning)];
    Advance();
  }

  void OnError(const std::string& task, const std::string& id, const std::string& method,
               const absl::Status& error) override {
    progress_.Clear();
    if (++errors_ <= kPrintedErrorsMax) {
      absl::FPrintF(stderr, "%s, question %s, method %s: %s\n", task, WithoutControls(id), method,
                    WithoutControls(error.ToString()));
    }
    if (errors_ == kPrintedErrorsMax) absl::FPrintF(stderr, "further errors are only counted\n");
    Advance();
  }

  // At the end: what the server warned of, each once with the number of answers.
  void Conclude() {
    progress_.Clear();
    for (const auto& [warning, answers] : warnings_) {
      absl::FPrintF(stderr, "warning, %d answers: %s\n", answers, WithoutControls(warning));
    }
  }

 private:
  void Count(const ItemResult& result) {
    auto& [right, asked] = counts_[result.method];
    right += result.correct ? 1 : 0;
    ++asked;
  }

  void Advance() {
    ++done_;
    const double elapsed = absl::ToDoubleSeconds(absl::Now() - start_);
    const double left = elapsed / static_cast<double>(done_) * static_cast<double>(total_ - done_);
    std::vector<std::string> parts;
    for (const std::string& label : labels_) {
      const auto& [right, asked] = counts_[label];
      if (asked > 0) parts.push_back(absl::StrFormat("%s %.1f", label, 100.0 * right / asked));
    }
    if (parts.size() > 8) parts.resize(8);
    progress_.Update(done_, absl::StrCat(absl::StrJoin(parts, " · "), "  ",
                                         absl::FormatDuration(absl::Seconds(static_cast<int64_t>(left))), " left"));
  }

  const size_t total_;
  ProgressLine progress_;
  const absl::Time start_;
  std::vector<std::string> labels_;
  std::map<std::string, std::pair<int, int>> counts_;  // right, asked
  std::map<std::string, int> warnings_;                // answers that have it
  size_t done_ = 0;
  size_t errors_ = 0;
};

bool ReadsReferences(const EvalMethod& method) {
  const bool offset_alone = method.optimization.method() == v1::METHOD_NONE && method.optimization.use_offset();
  if (offset_alone && method.collection_suffix.empty() && !method.optimization.has_collection()) return true;
  return method.collection_suffix.empty() && !method.optimization.has_collection() &&
         method.optimization.method() != v1::METHOD_NONE && method.optimization.method() != v1::METHOD_ORACLE;
}

// A collection without references would give the model's own accuracy under every method's name.
absl::Status CheckCollections(Session& session, const RunDescription& run) {
  bool any = false;
  for (const EvalMethod& method : run.methods) any = any || ReadsReferences(method);
  if (!any) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(const v1::GetStatsResponse stats, session.client->GetStats(session.call_options()));
  for (const Task& task : run.tasks) {
    bool found = false;
    for (const v1::CollectionStats& collection : stats.collections()) {
      found = found || (collection.collection() == task.collection && collection.usable() > 0);
    }
    if (found) continue;
    return absl::FailedPreconditionError(
        absl::StrCat("task ", task.name, ": collection ", task.collection, " holds no usable references; ",
                     task.references_file.empty() ? std::string("import some (c3po refs import FILE --collection NAME)")
                                                  : absl::StrCat("--import adds those of ", task.references_file)));
  }
  return absl::OkStatus();
}

// What makes this run another one when it changes: what the collections' requests get.
absl::Status NoteCollections(Session& session, RunDescription* run) {
  EffectiveSettings settings(session.client.get(), session.call_options(), run->server.default_optimization());
  for (const Task& task : run->tasks) {
    for (const std::string& collection : CollectionsRead(task, run->methods)) {
      C3PO_ASSIGN_OR_RETURN(run->effective[collection], settings.Of(collection));
    }
  }
  return absl::OkStatus();
}

// Their neighbors hold their answers: they are counted, told, and left out unless the user wants them.
absl::Status LookForKnownQuestions(Session& session, const EvaluationFlags& flags, RunDescription* run) {
  for (Task& task : run->tasks) {
    const std::vector<std::string> collections = CollectionsRead(task, run->methods);
    if (collections.empty()) continue;
    const size_t questions = task.items.size();
    ProgressLine progress(session.terminal, absl::StrCat("questions of ", task.name, " looked up"), questions);
    const auto known = FindKnownQuestions(
        *session.client, task, collections, flags.concurrency, [&](size_t done) { progress.Update(done, ""); },
        session.call_options());
    progress.Clear();
    C3PO_RETURN_IF_ERROR(known.status());
    task.among_references = static_cast<size_t>(std::count(known->begin(), known->end(), true));
    task.asks_them = flags.include_references;
    if (task.among_references == 0) continue;
    if (!task.asks_them) LeaveOut(*known, &task);
    absl::FPrintF(stderr, "task %s: %d of %d questions are among the references of %s; %s\n", task.name,
                  task.among_references, questions, absl::StrJoin(collections, ", "),
                  task.asks_them ? "they are asked, and what is gained on them says nothing of new questions"
                                 : "they are left out (--include-references asks them)");
    if (task.items.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat("task ", task.name, ": every question is among the references of ",
                       absl::StrJoin(collections, ", "), "; --include-references asks them all the same"));
    }
  }
  return absl::OkStatus();
}

// What the report's rows majority and label-offset are made of. After the answers, which matter more to a run that is
// ended early.
absl::Status ScoreLabels(Session& session, const EvaluationFlags& flags, const RunDescription& run,
                         const RunFolder& folder, ItemRunner& runner) {
  const bool lacks_model_alone = std::none_of(run.methods.begin(), run.methods.end(), [](const EvalMethod& method) {
    return method.kind == MethodKind::kScore && method.optimization.method() == v1::METHOD_NONE &&
           !method.optimization.use_offset();
  });
  if (lacks_model_alone || flags.offset_references == 0) return absl::OkStatus();
  std::vector<ReferenceScore> references;
  for (const Task& task : run.tasks) {
    C3PO_ASSIGN_OR_RETURN(std::vector<ReferenceScore> of_task,
                          ListLabelledReferences(*session.client, task, session.call_options()));
    std::move(of_task.begin(), of_task.end(), std::back_inserter(references));
  }
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<ReferenceScoreFile> file,
                        ReferenceScoreFile::Open(folder.path(), std::move(references)));
  ProgressLine progress(session.terminal, "references scored for the labels' offset",
                        ReferencesToScore(*file, flags.offset_references).size());
  ReferenceScoringOptions options;
  options.scored_max = flags.offset_references;
  options.concurrency = flags.concurrency;
  options.cancellation = &session.cancellation;
  options.on_progress = [&](size_t done) { progress.Update(done, ""); };
  const auto outcome = ScoreReferences(run.tasks, runner, *file, options);
  progress.Clear();
  C3PO_RETURN_IF_ERROR(outcome.status());
  if (outcome->failed > 0) {
    absl::FPrintF(stderr, "%d reference%s could not be scored; the labels' offset is fitted without %s\n",
                  outcome->failed, outcome->failed == 1 ? "" : "s", outcome->failed == 1 ? "it" : "them");
  }
  return absl::OkStatus();
}

absl::Status CheckOracle(const RunDescription& run) {
  for (const EvalMethod& method : run.methods) {
    for (const Task& task : run.tasks) {
      if (method.optimization.method() == v1::METHOD_ORACLE && task.kind == TaskKind::kGeneration) {
        return absl::InvalidArgumentError(
            absl::StrCat("method ", method.label, " needs choices, task ", task.name, " has none: run it apart"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status Conclude(const EvaluationOutcome& outcome, const std::string& out) {
  if (outcome.cancelled) {
    return absl::CancelledError(absl::StrCat("ended by a signal; the same command goes on from ", out));
  }
  absl::Status status = outcome.status;
  for (const absl::Status& given_up : outcome.given_up) {
    if (status.ok()) status = given_up;
    if (given_up != status) absl::FPrintF(stderr, "%s\n", WithoutControls(given_up.ToString()));
  }
  if (!status.ok()) return status;
  if (outcome.failed > 0) {
    return absl::InternalError(absl::StrCat(outcome.failed, outcome.failed == 1 ? " answer" : " answers",
                                            " failed and count nowhere; the same command asks them again"));
  }
  return absl::OkStatus();
}

}  // namespace

void AddEvaluationFlags(CLI::App& command, EvaluationFlags* flags) {
  constexpr char kTasks[] = "Questions";
  command
      .add_option(
          "--task", flags->tasks,
          "A file (samples JSONL, MMLU .csv or a folder of them, MMLU, HellaSwag, ARC, PIQA, WinoGrande, GSM8K JSONL) "
          "or the name of a task of the suite; may be given several times, or names by commas")
      ->delimiter(',')
      ->group(kTasks);
  command.add_option("--suite", flags->suite, "Folder of a suite; default: that of deploy/evaluation/build_suite.py")
      ->check(CLI::ExistingDirectory)
      ->group(kTasks);
  command
      .add_option("--group", flags->groups,
                  "Tasks of this group: knowledge, adaptation, procedural, many_answers, free_answers")
      ->delimiter(',')
      ->group(kTasks);
  command.add_option("--labels", flags->labels_file, "Labels of a PIQA file, one a line")
      ->check(CLI::ExistingFile)
      ->group(kTasks);
  command.add_option("--metric", flags->metric, "Of a file: raw, per_byte, per_token or exact_match")->group(kTasks);
  command.add_option("--extract", flags->extraction, "Of a generation file: the answer's regular expression (PCRE)")
      ->group(kTasks);
  command.add_option("--stop", flags->stop, "Of a generation file: end before this text; may be given several times")
      ->allow_extra_args(false)
      ->group(kTasks);
  command.add_option("--max-tokens", flags->max_tokens, "Of a generation file: tokens to generate at most")
      ->check(CLI::PositiveNumber)
      ->group(kTasks);
  command.add_option("--limit", flags->limit, "Questions per task; 0: all")->group(kTasks);
  command.add_option("--seed", flags->seed, "Shuffle the questions by this; default: the order of the file")
      ->group(kTasks);
  command.add_flag("--import", flags->import, "First import the suite's references into the tasks' collections");
  command
      .add_flag("--include-references", flags->include_references,
                "Ask questions that are among the references, too; without it they are left out")
      ->group(kTasks);
  command.add_option("--out", flags->out, "Folder of the run: run.json and items.jsonl; a run it holds goes on")
      ->required();
  command.add_flag("--resume", flags->resume, "Fail unless the folder holds a run to go on with");
  command.add_option("--concurrency", flags->concurrency, "Questions asked at a time")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command
      .add_option("--icl-shots", flags->shots,
                  "Neighbors before the prompt of method icl; default: as many as the optimizing methods have")
      ->check(CLI::Range(1, 64));
  command
      .add_option("--offset-references", flags->offset_references,
                  "References per task whose labels the model alone scores, one call each, for the report's row "
                  "label-offset, and the server, for offsets that methods ask for; 0: none, no rows that read "
                  "references' labels, and all references for the server's")
      ->capture_default_str();
  command.add_option("--report", flags->report, "Write an HTML report to this file");
  AddOptimizationFlags(command, &flags->optimization);
  command.remove_option(command.get_option("--method"));
}

absl::StatusOr<std::vector<Task>> LoadTasks(const EvaluationFlags& flags) {
  C3PO_ASSIGN_OR_RETURN(const TaskFileOptions file_options, FileOptions(flags));
  std::vector<Task> tasks;
  std::vector<std::string> names;
  for (const std::string& task : flags.tasks) {
    std::error_code error;
    if (std::filesystem::exists(task, error)) {
      C3PO_ASSIGN_OR_RETURN(tasks.emplace_back(), ReadTaskFile(task, file_options));
    } else {
      names.push_back(task);
    }
  }
  const bool whole_suite = flags.tasks.empty() && flags.groups.empty() && !flags.suite.empty();
  if (!names.empty() || !flags.groups.empty() || whole_suite) {
    C3PO_ASSIGN_OR_RETURN(std::vector<Task> of_suite,
                          ReadSuite(flags.suite.empty() ? DefaultSuite() : flags.suite, names, flags.groups));
    std::move(of_suite.begin(), of_suite.end(), std::back_inserter(tasks));
  }
  if (tasks.empty()) return absl::InvalidArgumentError("no questions: give --task, --group or --suite");
  for (size_t i = 0; i < tasks.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (tasks[i].name == tasks[j].name) {
        return absl::InvalidArgumentError(absl::StrCat("two tasks have the name ", tasks[i].name));
      }
    }
    if (flags.optimization.has_collection()) tasks[i].collection = flags.optimization.collection();
    SampleItems(flags.limit, flags.seed, &tasks[i].items);
  }
  return tasks;
}

absl::Status ImportTaskReferences(Session& session, const std::vector<Task>& tasks) {
  for (const Task& task : tasks) {
    if (task.references_file.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("--import: task ", task.name, " is of no suite, so it has no references file"));
    }
    C3PO_ASSIGN_OR_RETURN(const std::vector<v1::ReferenceSample> samples, ReadSampleFile(task.references_file));
    ProgressLine progress(session.terminal, absl::StrCat("references of ", task.name), samples.size());
    const auto ids = ImportSamples(
        *session.client, task.collection, samples, [&](size_t done) { progress.Update(done, ""); },
        session.call_options(absl::InfiniteDuration()));
    progress.Clear();
    if (!ids.ok()) {
      return absl::Status(ids.status().code(), absl::StrCat(task.references_file, ": ", ids.status().message()));
    }
  }
  return absl::OkStatus();
}

absl::Status RunEvaluation(Session& session, const EvaluationFlags& flags, const std::string& out, RunDescription run) {
  C3PO_RETURN_IF_ERROR(CheckOracle(run));
  if (flags.resume && !std::filesystem::exists(out + "/run.json")) {
    return absl::NotFoundError(absl::StrCat(out, "/run.json: there is no run to go on with (--resume)"));
  }
  C3PO_RETURN_IF_ERROR(CheckCollections(session, run));
  C3PO_RETURN_IF_ERROR(NoteCollections(session, &run));
  C3PO_RETURN_IF_ERROR(LookForKnownQuestions(session, flags, &run));
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<RunFolder> folder, RunFolder::Open(out, run));
  if (folder->resumed() > 0) {
    absl::FPrintF(stderr, "%s holds %d answers, %d are missing\n", out, folder->resumed(),
                  MissingAnswers(run, *folder));
  }
  ClientItemRunner runner(session.client.get(), session.call_options(), run.server);
  C3PO_RETURN_IF_ERROR(PrepareOffsets(session, flags.offset_references, run, runner));
  runner.ShareCalls(run.methods);
  LiveProgress progress(session.terminal, run, *folder);
  EvaluationOptions options;
  options.concurrency = flags.concurrency;
  options.cancellation = &session.cancellation;
  const Cancellation::Watched watched(&session.cancellation);
  const EvaluationOutcome outcome = Evaluate(run, runner, *folder, progress, options);
  progress.Conclude();
  const bool goes_on = !outcome.cancelled && outcome.status.ok();
  const absl::Status scored = goes_on ? ScoreLabels(session, flags, run, *folder, runner) : absl::OkStatus();
  C3PO_RETURN_IF_ERROR(WriteLabelBaselines(out));
  C3PO_RETURN_IF_ERROR(PrintRun(out, flags.report));
  C3PO_RETURN_IF_ERROR(Conclude(outcome, out));
  if (absl::IsCancelled(scored)) {
    return absl::CancelledError(absl::StrCat("ended by a signal; the same command goes on from ", out));
  }
  return scored;
}

}  // namespace c3po
