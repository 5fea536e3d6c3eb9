#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/cli/argument_check.h"
#include "client/cli/calibration_output.h"
#include "client/cli/commands.h"
#include "client/cli/json_output.h"
#include "client/cli/off_topic.h"
#include "client/cli/request_flags.h"
#include "client/cli/terminal.h"
#include "client/eval/answer_journal.h"
#include "client/eval/calibration.h"
#include "client/eval/collection_import.h"
#include "client/eval/known_questions.h"
#include "client/eval/option_setting.h"
#include "client/eval/sample_line.h"
#include "client/eval/task_file.h"
#include "client/eval/task_scorer.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr size_t kQuestionsMin = 4;

struct CalibrateFlags {
  std::string collection;
  std::string references;
  std::string heldout;
  std::string metric;
  size_t questions = 60;
  double budget_seconds = 1800;
  uint64_t seed = 0;
  int concurrency = 2;
  double cost_weight = CalibrationSettings().cost_weight;
  std::string state;
  bool fresh = false;
  bool dry_run = false;
  v1::OptimizationOptions fixed;
};

// The collection's samples with their ids: from the server, or from a file that is imported first.
absl::StatusOr<std::vector<v1::Reference>> ReadPool(Session& session, const CalibrateFlags& flags) {
  std::vector<v1::Reference> pool;
  if (flags.references.empty()) {
    v1::ListReferencesRequest request;
    request.set_collection(flags.collection);
    request.set_page_size(500);
    C3PO_RETURN_IF_ERROR(session.client->ForEachReference(
        request,
        [&](const v1::Reference& reference) {
          pool.push_back(reference);
          return true;
        },
        session.call_options()));
    return pool;
  }
  C3PO_ASSIGN_OR_RETURN(const std::vector<v1::ReferenceSample> samples, ReadSampleFile(flags.references));
  ProgressLine progress(session.terminal, "references", samples.size());
  absl::StatusOr<std::vector<std::string>> ids = ImportSamples(
      *session.client, flags.collection, samples, [&](size_t done) { progress.Update(done, ""); },
      session.call_options(absl::InfiniteDuration()));
  progress.Clear();
  C3PO_RETURN_IF_ERROR(ids.status());
  for (size_t i = 0; i < samples.size(); ++i) {
    v1::Reference& reference = pool.emplace_back();
    reference.set_id((*ids)[i]);
    *reference.mutable_sample() = samples[i];
  }
  return pool;
}

// Leave-one-out questions: a sample of `pool`, each with the ids of all references that have its prompt. Those with
// choices where there are any.
Task LeaveOneOutTask(const std::vector<v1::Reference>& pool, const std::vector<v1::Reference>& references,
                     const CalibrateFlags& flags) {
  Task task;
  task.name = task.collection = flags.collection;
  const bool choices = std::any_of(
      pool.begin(), pool.end(), [](const v1::Reference& reference) { return reference.sample().choices_size() > 1; });
  task.kind = choices ? TaskKind::kChoice : TaskKind::kGeneration;
  task.metric = choices ? Metric::kPerToken : Metric::kExactMatch;
  if (!choices) task.stop = {"\n"};
  // A sample that was relabeled, or is there twice under other choices, is at distance 0 of itself.
  std::multimap<absl::string_view, const std::string*> ids;
  for (const v1::Reference& reference : references) {
    ids.emplace(absl::StripAsciiWhitespace(reference.sample().prompt()), &reference.id());
  }
  for (const size_t index : ShuffledOrder(pool.size(), flags.seed)) {
    if (task.items.size() == flags.questions) break;
    const v1::ReferenceSample& sample = pool[index].sample();
    if (choices != (sample.choices_size() > 1)) continue;
    TaskItem item;
    item.id = pool[index].id();
    item.prompt = sample.prompt();
    const auto same = ids.equal_range(absl::StripAsciiWhitespace(item.prompt));
    for (auto each = same.first; each != same.second; ++each) item.own_references.push_back(*each->second);
    item.answer = sample.answer();
    item.choices.assign(sample.choices().begin(), sample.choices().end());
    const auto gold = std::find(item.choices.begin(), item.choices.end(), item.answer);
    if (choices) item.gold = static_cast<int>(gold - item.choices.begin());
    task.items.push_back(std::move(item));
  }
  return task;
}

// The user's own questions, if given, follow the task's and check.
absl::Status AddHeldout(Session& session, const CalibrateFlags& flags, Task* task, CalibrationSettings* settings) {
  settings->questions.resize(task->items.size());
  std::iota(settings->questions.begin(), settings->questions.end(), size_t{0});
  if (flags.heldout.empty()) return absl::OkStatus();
  C3PO_ASSIGN_OR_RETURN(Task heldout, ReadTaskFile(flags.heldout));
  if (heldout.kind != task->kind) {
    return absl::InvalidArgumentError(absl::StrCat(flags.heldout, ": its questions are of ", TaskKindName(heldout.kind),
                                                   ", the collection's of ", TaskKindName(task->kind)));
  }
  C3PO_ASSIGN_OR_RETURN(const std::vector<bool> known, FindKnownQuestions(
                                                           *session.client, heldout, {flags.collection},
                                                           flags.concurrency, [](size_t) {}, session.call_options()));
  if (const size_t left_out = LeaveOut(known, &heldout); left_out > 0) {
    absl::PrintF("%s: %d of %d questions are among the references of %s and are left out\n", flags.heldout, left_out,
                 known.size(), flags.collection);
  }
  if (heldout.items.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat(flags.heldout, ": every question is among the references of ", flags.collection));
  }
  for (TaskItem& item : heldout.items) {
    settings->check.push_back(task->items.size());
    task->items.push_back(std::move(item));
  }
  return absl::OkStatus();
}

// The server's defaults with every field set that the axes move.
v1::OptimizationOptions StartOptions(const v1::OptimizationOptions& defaults, const CalibrateFlags& flags) {
  v1::OptimizationOptions start = defaults;
  start.set_method(v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  start.set_collection(flags.collection);
  start.set_use_profile(false);
  start.clear_return_pathways();
  start.clear_exclude_reference_ids();
  ApplyPatch(flags.fixed, &start);
  return start;
}

absl::StatusOr<v1::GetCollectionResponse> Collection(Session& session, const CalibrateFlags& flags) {
  v1::GetCollectionRequest request;
  request.set_collection(flags.collection);
  return session.client->GetCollection(request, session.call_options());
}

// A prior is judged by references that it was not fitted to, so only these are asked, even where they are somewhat
// fewer than the questions wanted. Where they are fewer than half, all are asked and the prior is not tried.
bool KeepWhatPriorDidNotSee(const v1::GetCollectionResponse& collection, size_t questions,
                            std::vector<v1::Reference>* pool) {
  if (!collection.has_prior() || !collection.prior().usable()) return false;
  const auto& ids = collection.prior().validation_reference_ids();
  const std::set<std::string> apart(ids.begin(), ids.end());
  std::vector<v1::Reference> kept;
  for (const v1::Reference& reference : *pool) {
    if (apart.count(reference.id()) > 0) kept.push_back(reference);
  }
  if (2 * kept.size() < questions) {
    absl::PrintF(
        "The prior is not tried: %d references were held apart from it, fewer than half of --questions %d. "
        "(refs tune --validation-fraction holds more apart.)\n",
        kept.size(), questions);
    return false;
  }
  *pool = std::move(kept);
  return true;
}

CalibrationScope Scope(const CalibrateFlags& flags, const v1::GetServerInfoResponse& info,
                       const v1::GetCollectionResponse& collection, bool has_choices, bool has_prior) {
  CalibrationScope scope;
  scope.moe_layers = info.model().moe_layers();
  scope.experts = info.model().experts();
  scope.references = static_cast<uint32_t>(collection.stats().references());
  scope.has_choices = has_choices;
  scope.defaults = info.default_optimization();
  scope.fixed = flags.fixed;
  scope.has_prior = has_prior;
  scope.has_amortized = collection.amortized_shifts() > 0;
  return scope;
}

absl::Status Store(Session& session, const CalibrateFlags& flags, const CalibrationResult& result,
                   const v1::GetServerInfoResponse& info) {
  v1::SetProfileRequest request;
  request.set_collection(flags.collection);
  v1::OptimizationOptions& profile = *request.mutable_profile();
  if (result.helps) {
    profile = result.chosen;
    profile.clear_collection();
    profile.clear_use_profile();
    profile.clear_exclude_reference_ids();
    profile.clear_return_pathways();
  } else {
    profile.set_method(v1::METHOD_NONE);
  }
  request.set_notes(CalibrationNotes(result, info));
  C3PO_RETURN_IF_ERROR(session.client->SetProfile(request, session.call_options()).status());
  absl::PrintF("Stored as the profile of collection %s: its requests use it unless they set a field themselves.\n",
               flags.collection);
  return absl::OkStatus();
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
    absl::PrintF(
        "%s holds %d answers of a calibration that was ended, or stored nothing: it goes on (--fresh begins anew)\n",
        path, (*journal)->resumed());
  }
  return journal;
}

absl::Status RunCalibrate(Session& session, CalibrateFlags flags) {
  flags.fixed.clear_collection();
  C3PO_ASSIGN_OR_RETURN(const v1::GetServerInfoResponse info, session.client->GetServerInfo(session.call_options()));
  if (info.model().moe_layers() == 0) return absl::FailedPreconditionError("the server's model has no MoE layers");
  C3PO_ASSIGN_OR_RETURN(const std::vector<v1::Reference> references, ReadPool(session, flags));
  C3PO_ASSIGN_OR_RETURN(const v1::GetCollectionResponse collection, Collection(session, flags));
  std::vector<v1::Reference> pool = references;
  const bool has_prior = KeepWhatPriorDidNotSee(collection, flags.questions, &pool);
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
  const CalibrationScope scope = Scope(flags, info, collection, task.kind == TaskKind::kChoice, has_prior);
  settings.metric = task.metric;
  settings.start = StartOptions(info.default_optimization(), flags);
  settings.axes = CalibrationAxes(scope);
  // The first whole setting is a sounder point to begin at than the server's defaults.
  ApplyPatch(settings.axes.front().candidates.front().patch, &settings.start);
  settings.budget = flags.budget_seconds > 0 ? absl::Seconds(flags.budget_seconds) : absl::InfiniteDuration();
  settings.cost_weight = flags.cost_weight;
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<AnswerJournal> journal,
                        OpenJournal(flags, Identity(info, collection, references, task)));
  CalibrationPrinter printer(session.terminal, settings);
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
  if (result->helps) C3PO_RETURN_IF_ERROR(SpareOffTopic(session, flags.collection, &result->chosen));
  // What was not searched to its end does not show that nothing helps: an earlier profile stays.
  if (result->ended && !result->helps) {
    absl::PrintF("Nothing is stored: of the points tried none helps, and others were not tried.\n");
  } else if (!flags.dry_run) {
    C3PO_RETURN_IF_ERROR(Store(session, flags, *result, info));
  }
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
  command->add_flag("--dry-run", flags->dry_run, "Store nothing, and keep the answers for a run that does");
  AddOptimizationFlags(*command, &flags->fixed);
  for (const char* other : {"--collection", "--return-pathways"}) command->remove_option(command->get_option(other));
  command->add_option("--collection", flags->collection, "The collection")->check(NotEmpty())->required();
  command->footer("An option that is given stays fixed; the others are searched.");
  command->callback(
      [session, flags] { session->command = [flags](Session& chosen) { return RunCalibrate(chosen, *flags); }; });
}

}  // namespace c3po
