#include "client/cli/off_topic.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/terminal.h"
#include "client/eval/off_topic_check.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr double kChangedMax = 0.05;
constexpr size_t kCollectionsMax = 4, kPromptsEach = 6, kOwnPromptsMax = 48;
// A limit is set only where at least this share of the collection's references would still be helped.
constexpr double kOwnWithinMin = 0.5;

}  // namespace

absl::Status SpareOffTopic(Session& session, const std::string& collection, v1::OptimizationOptions* settings,
                           std::FILE* said) {
  if (settings->method() == v1::METHOD_NONE) return absl::OkStatus();
  std::vector<std::string> prompts = EverydayPrompts();
  C3PO_ASSIGN_OR_RETURN(
      const std::vector<std::string> others,
      PromptsOfOthers(*session.client, collection, kCollectionsMax, kPromptsEach, session.call_options()));
  prompts.insert(prompts.end(), others.begin(), others.end());
  v1::OptimizationOptions asked = *settings;
  asked.set_collection(collection);
  asked.set_use_profile(false);
  ProgressLine progress(session.terminal, "off-topic prompts", prompts.size());
  uint64_t done = 0;
  const auto answers = AskOffTopic(
      *session.client, asked, prompts, [&] { progress.Update(++done, ""); }, session.call_options());
  progress.Clear();
  C3PO_RETURN_IF_ERROR(answers.status());
  const auto changed = std::count_if(answers->begin(), answers->end(), [](const auto& each) { return each.changed; });
  absl::FPrintF(said,
                "Off topic: %d of %d prompts of every day and of other collections keep the model's own answer.\n",
                static_cast<int64_t>(answers->size()) - changed, answers->size());
  if (static_cast<double>(changed) <= kChangedMax * static_cast<double>(answers->size())) return absl::OkStatus();
  const std::optional<double> limit = DistanceThatSpares(*answers, kChangedMax);
  if (!limit || (settings->gate().has_enabled() && !settings->gate().enabled())) {
    absl::FPrintF(said, "The gate cannot spare them: it is off. Without --no-gate it would.\n");
    return absl::OkStatus();
  }
  C3PO_ASSIGN_OR_RETURN(const std::vector<double> own,
                        DistancesWithin(*session.client, collection, kOwnPromptsMax, session.call_options()));
  const auto within = std::count_if(own.begin(), own.end(), [&](double distance) { return distance <= *limit; });
  // A profile whose limit leaves the collection's own requests alone is none, whatever lift was measured without it.
  if (static_cast<double>(within) < kOwnWithinMin * static_cast<double>(own.size())) {
    absl::FPrintF(said,
                  "No distance tells them from the collection's own: a limit of %.4f would leave alone %d of %d of its "
                  "references.\n"
                  "None is set. Is one of the other collections of the same kind?\n",
                  *limit, static_cast<int64_t>(own.size()) - within, own.size());
    return absl::OkStatus();
  }
  settings->mutable_gate()->set_max_neighbor_distance(*limit);
  absl::FPrintF(
      said,
      "Requests are left alone beyond distance %.4f of their nearest reference, so that %.0f %% of these do.\n"
      "Of the collection's own references %d of %d are within it. The lift above was measured without this limit.\n",
      *limit, 100 * (1 - kChangedMax), within, own.size());
  return absl::OkStatus();
}

}  // namespace c3po
