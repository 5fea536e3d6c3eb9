#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/argument_check.h"
#include "client/cli/calibration_output.h"
#include "client/cli/calibration_profile.h"
#include "client/cli/calibration_questions.h"
#include "client/cli/commands.h"
#include "client/cli/off_topic.h"
#include "client/cli/request_flags.h"
#include "client/cli/terminal.h"
#include "client/eval/answer_journal.h"
#include "client/eval/calibration.h"
#include "client/eval/sample_line.h"
#include "client/eval/task_scorer.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr size_t kQuestionsMin = 4;

// The server's defaults with every field set that the axes move.
v1::OptimizationOptions StartOptions(const v1::OptimizationOptions& defaults, const CalibrateFlags& flags) {
  v1::OptimizationOptions start = defaults;
  start.set_method(v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  start.set_collection(flags.collection);
  start.set_use_profile(false);
  start.clear_return_pathways();
  start.clear_exclude_reference_ids();
  start.set_use_offset(false);  // It is fitted here, to the scores without one.
  ApplyPatch(flags.fixed, &start);
  return start;
}

absl::StatusOr<v1::GetCollectionResponse> Collection(Session& session, const CalibrateFlags& flags) {
  v1::GetCollectionRequest request;
  request.set_collection(flags.collection);
  return session.client->GetCollection(request, session.call_options());
}

CalibrationScope Scope(const CalibrateFlags& flags, const v1::GetServerInfoResponse& info,
                       const v1::GetCollectionResponse& collection, bool has_choices, bool has_labels, bool has_prior) {
  CalibrationScope scope;
  scope.moe_layers = info.model().moe_layers();
  scope.experts = info.model().experts();
  scope.references = static_cast<uint32_t>(collection.stats().references());
  scope.has_choices = has_choices;
  scope.has_labels = has_labels;
  scope.defaults = info.default_optimization();
  scope.fixed = flags.fixed;
  scope.has_prior = has_prior;
  scope.has_amortized = collection.amortized_shifts() > 0;
  return scope;
}

std::string DefaultState(const CalibrateFlags& flags) {
  const char* cache = std::getenv("C3PO_CACHE_DIR");
  const char* home = std::getenv("HOME");
  const std::string folder = cache != nullptr && *cache != '\0'
                                 ? std::string(cache)
                                 : absl::StrCat(home == nullptr ? "." : home, "/.cache/c3po");
  std::string name;  // What a file may be called, and beside it what tells two collections apart.
  for (const char c : flags.collection) name += absl::ascii_isalnum(c) || c == '-' || c == '.' ? c : '_';
  return absl::StrCat(folder, "/calibrations/", name.substr(0, 64), "-",
                      absl::Hex(Fingerprint().Add(flags.collection).value(), absl::kZeroPad16), ".jsonl");
}

// What is tried, and for how long.
void SetSearch(const CalibrateFlags& flags, const v1::GetServerInfoResponse& info, const CalibrationScope& scope,
               CalibrationSettings* settings) {
  settings->start = StartOptions(info.default_optimization(), flags);
  settings->axes = CalibrationAxes(scope);
  // The first whole setting is a sounder point to begin at than the server's defaults.
  ApplyPatch(settings->axes.front().candidates.front().patch, &settings->start);
  settings->budget = flags.budget_seconds > 0 ? absl::Seconds(flags.budget_seconds) : absl::InfiniteDuration();
  settings->cost_weight = flags.cost_weight;
}

// What answers depend on besides options and questions.
std::string Identity(const v1::GetServerInfoResponse& info, const v1::GetCollectionResponse& collection,
                     const std::vector<v1::Reference>& references, const Task& task) {
  // Of the whole samples: one that brings an id of its own keeps it when it is imported again with another answer.
  std::vector<std::string> samples;
  for (const v1::Reference& reference : references) {
    samples.push_back(absl::StrCat(reference.id(), "\n", SampleLineText(reference.sample())));
  }
  std::sort(samples.begin(), samples.end());
  Fingerprint print;
  for (const std::string& sample : samples) print.Add(sample);
  print.Add(collection.prior().SerializeAsString());
  const nlohmann::ordered_json identity = {{"kept_by", "c3po calibrate"},
                                           {"version", 1},
                                           {"collection", task.collection},
                                           {"metric", MetricName(task.metric)},
                                           {"model", info.model().digest()},
                                           {"embedder", info.embedder().digest()},
                                           {"references", collection.stats().references()},
                                           {"shifts", collection.amortized_shifts()},
                                           {"of", absl::StrCat(absl::Hex(print.value(), absl::kZeroPad16))}};
  return identity.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

// Null where none can be kept, which is told: the calibration goes on without.
absl::StatusOr<std::unique_ptr<AnswerJournal>> OpenJournal(const CalibrateFlags& flags, const std::string& identity) {
  const std::string path = flags.state.empty() ? DefaultState(flags) : flags.state;
  absl::StatusOr<std::unique_ptr<AnswerJournal>> journal = AnswerJournal::Open(path, identity);
  if (journal.ok() && flags.fresh) {
    (*journal)->Remove();
    journal->reset();
    journal = AnswerJournal::Open(path, identity);
  }
  if (!journal.ok() && flags.state.empty()) {
    absl::FPrintF(stderr, "answers are not kept: %s\n", journal.status().message());
    return nullptr;
  }
  C3PO_RETURN_IF_ERROR(journal.status());
  if ((*journal)->resumed() > 0) {
    absl::FPrintF(
        flags.said(),
        "%s holds %d answers of a calibration that was ended, or stored nothing: it goes on (--fresh begins anew)\n",
        path, (*journal)->resumed());
  }
  return journal;
}

// Whether the offset of labels is part of the question: not with --no-offset.
absl::Status FindLabels(const Task& task, CalibrateFlags* flags, CalibrationSettings* settings) {
  const bool unwanted = flags->fixed.has_use_offset() && !flags->fixed.use_offset();
  if (!unwanted) settings->labels = LabelsOfQuestions(task);
  if (flags->fixed.use_offset() && !settings->labels.any()) {
    return absl::FailedPreconditionError(absl::StrCat("--offset: the questions of collection ", flags->collection,
                                                      " do not share their choices: there is no offset"));
  }
  flags->fixed.clear_use_offset();
  return absl::OkStatus();
}

absl::Status RunCalibrate(Session& session, CalibrateFlags flags) {
  flags.fixed.clear_collection();
  C3PO_ASSIGN_OR_RETURN(const v1::GetServerInfoResponse info, session.client->GetServerInfo(session.call_options()));
  if (info.model().moe_layers() == 0) return absl::FailedPreconditionError("the server's model has no MoE layers");
  C3PO_ASSIGN_OR_RETURN(const std::vector<v1::Reference> references, ReadPool(session, flags));
  C3PO_ASSIGN_OR_RETURN(const v1::GetCollectionResponse collection, Collection(session, flags));
  std::vector<v1::Reference> pool = references;
  const bool has_prior = KeepWhatPriorDidNotSee(collection, flags, &pool);
  Task task = LeaveOneOutTask(pool, references, flags);
  if (task.items.size() < kQuestionsMin) {
    return absl::FailedPreconditionError(absl::StrCat("collection ", flags.collection, " holds ", task.items.size(),
                                                      " questions to calibrate with; at least ", kQuestionsMin,
                                                      " are needed"));
  }
  if (!flags.metric.empty() && task.kind == TaskKind::kChoice) {
    C3PO_ASSIGN_OR_RETURN(task.metric, ParseMetric(flags.metric));
  }
  CalibrationSettings settings;
  C3PO_RETURN_IF_ERROR(AddHeldout(session, flags, &task, &settings));
  C3PO_RETURN_IF_ERROR(FindLabels(task, &flags, &settings));
  const CalibrationScope scope =
      Scope(flags, info, collection, task.kind == TaskKind::kChoice, settings.labels.any(), has_prior);
  settings.metric = task.metric;
  SetSearch(flags, info, scope, &settings);
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<AnswerJournal> journal,
                        OpenJournal(flags, Identity(info, collection, references, task)));
  CalibrationPrinter printer(session.terminal, settings, flags.said());
  settings.on_point = [&](const TriedPoint& point) { printer.OnPoint(point); };
  const Cancellation::Watched watched(&session.cancellation);
  settings.ended = [&] { return session.cancellation.cancelled(); };
  settings.on_ended = [&] {
    printer.Clear();
    absl::FPrintF(stderr, "ended by a signal: the best point so far is checked; a second signal ends at once\n");
    session.cancellation.Reset();
  };
  ClientItemRunner runner(session.client.get(), session.call_options(), info);
  absl::Status kept;
  TaskScorer asked(&task, &runner, flags.concurrency,
                   [&](const v1::OptimizationOptions& options, const TaskItem& item, const ItemResult& answer) {
                     printer.OnAnswer();
                     if (journal != nullptr && kept.ok()) kept = journal->Append(options, item, answer);
                   });
  RememberingScorer remembering(&task, &asked, journal.get());
  CalibrationScorer& scorer = journal != nullptr ? static_cast<CalibrationScorer&>(remembering) : asked;
  absl::StatusOr<CalibrationResult> result = Calibrate(settings, scorer);
  printer.Clear();
  if (!kept.ok()) absl::FPrintF(stderr, "answers are no longer kept: %s\n", kept.message());
  const std::string goes_on =
      journal != nullptr ? absl::StrCat("; the same command goes on from ", journal->path()) : std::string();
  if (!result.ok()) return absl::Status(result.status().code(), absl::StrCat(result.status().message(), goes_on));
  printer.PrintOutcome(flags.collection, *result);
  if (result->helps()) {
    C3PO_RETURN_IF_ERROR(SpareOffTopic(session, flags.collection, &result->chosen, flags.said()));
  }
  std::optional<v1::OptimizationOptions> stored;
  // What was not searched to its end does not show that nothing helps: an earlier profile stays.
  if (result->ended && !result->helps()) {
    absl::FPrintF(flags.said(), "Nothing is stored: of the points tried none helps, and others were not tried.\n");
  } else if (!flags.dry_run) {
    C3PO_ASSIGN_OR_RETURN(stored, StoreCalibration(session, flags, *result, info));
  }
  if (flags.json) absl::PrintF("%s\n", CalibrationJson(flags.collection, *result, info, stored));
  if (result->ended) {
    return absl::CancelledError(absl::StrCat("ended by a signal before every point was tried", goes_on));
  }
  // A dry run is often followed by the same without --dry-run, which asks nothing again.
  if (journal != nullptr && !result->budget_spent && !flags.dry_run) journal->Remove();
  return absl::OkStatus();
}

}  // namespace

void AddCalibrateCommand(CLI::App& app, Session* session) {
  CLI::App* command = app.add_subcommand(
      "calibrate",
      "Choose a collection's settings by leave-one-out over its references, and store them as its profile");
  const auto flags = std::make_shared<CalibrateFlags>();
  command->add_option("--questions", flags->questions, "References that are asked; half searches, half checks")
      ->check(CLI::Range(4, 100000))
      ->capture_default_str();
  command
      ->add_option("--heldout", flags->heldout,
                   "Your own questions (any file that eval reads) for the check; all --questions then search")
      ->check(CLI::ExistingFile);
  command
      ->add_option("--reference-file", flags->references,
                   "Import these samples first and calibrate on them; default: what the collection holds")
      ->check(CLI::ExistingFile);
  command->add_option("--metric", flags->metric, "Of choices: raw, per_byte or per_token (default)");
  command->add_option("--budget-seconds", flags->budget_seconds, "Begin no further point after this; 0: no limit")
      ->check(NumberIn(0, std::numeric_limits<double>::infinity()))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Of the sample of references")->capture_default_str();
  command->add_option("--concurrency", flags->concurrency, "Questions asked at a time")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command
      ->add_option("--cost-weight", flags->cost_weight,
                   "What each doubling of the seconds per question must bring, in [0, 1] of accuracy; 0: time is free")
      ->check(NumberIn(0, 1))
      ->capture_default_str();
  command->add_option("--state", flags->state,
                      "Keep the answers in this file until the search is complete; a search that was ended, or whose "
                      "budget was spent, goes on from it. Default: in ~/.cache/c3po/calibrations");
  command->add_flag("--fresh", flags->fresh, "Begin anew, whatever such a file holds");
  command
      ->add_option("--offset-references", flags->offset_references,
                   "References that a stored label offset is fitted to, at most, from 10 on; 0: all")
      ->check(CLI::Range(10, 1000000) | CLI::IsMember({"0"}))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print the outcome as one JSON document, all else to stderr");
  command->add_flag("--dry-run", flags->dry_run, "Store nothing, and keep the answers for a run that does");
  AddOptimizationFlags(*command, &flags->fixed);
  for (const char* other : {"--collection", "--return-pathways"}) command->remove_option(command->get_option(other));
  command->add_option("--collection", flags->collection, "The collection")->check(NotEmpty())->required();
  command->footer("An option that is given stays fixed; the others are searched.");
  command->callback(
      [session, flags] { session->command = [flags](Session& chosen) { return RunCalibrate(chosen, *flags); }; });
}

}  // namespace c3po
