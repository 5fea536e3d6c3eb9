#include "client/cli/calibration_questions.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal.h"
#include "client/eval/collection_import.h"
#include "client/eval/known_questions.h"
#include "client/eval/sample_line.h"
#include "client/eval/task_file.h"
#include "index/base/status_macros.h"

namespace c3po {

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
    absl::FPrintF(flags.said(), "%s: %d of %d questions are among the references of %s and are left out\n",
                  flags.heldout, left_out, known.size(), flags.collection);
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

bool KeepWhatPriorDidNotSee(const v1::GetCollectionResponse& collection, const CalibrateFlags& flags,
                            std::vector<v1::Reference>* pool) {
  if (!collection.has_prior() || !collection.prior().usable()) return false;
  const auto& ids = collection.prior().validation_reference_ids();
  const std::set<std::string> apart(ids.begin(), ids.end());
  std::vector<v1::Reference> kept;
  for (const v1::Reference& reference : *pool) {
    if (apart.count(reference.id()) > 0) kept.push_back(reference);
  }
  if (2 * kept.size() < flags.questions) {
    absl::FPrintF(flags.said(),
                  "The prior is not tried: %d references were held apart from it, fewer than half of --questions %d. "
                  "(refs tune --validation-fraction holds more apart.)\n",
                  kept.size(), flags.questions);
    return false;
  }
  *pool = std::move(kept);
  return true;
}

}  // namespace c3po
