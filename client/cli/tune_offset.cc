#include "client/cli/tune_offset.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/explain.h"
#include "client/cli/json_output.h"
#include "client/cli/terminal.h"
#include "client/eval/offset_tuning.h"
#include "index/base/status_macros.h"

namespace c3po {

absl::Status TuneOffset(Session& session, const v1::TuneOffsetRequest& request, bool json) {
  std::optional<ProgressLine> progress;
  absl::Status printed;
  const absl::Status status = session.client->TuneOffset(
      request,
      [&](const v1::TuneOffsetResponse& event) {
        if (json) {
          printed = PrintJsonLine(event);
          return printed.ok();
        }
        if (!progress) progress.emplace(session.terminal, "references", event.total());
        progress->Update(event.done(), "");
        if (event.has_stored()) {
          progress->Clear();
          absl::PrintF("collection %s: label offset %s\n", request.collection(), DescribeOffset(event.stored()));
        }
        return true;
      },
      session.call_options(absl::InfiniteDuration()));
  if (progress) progress->Clear();
  return status.ok() ? printed : status;
}

absl::Status PrepareOffsets(Session& session, uint64_t references_max, const RunDescription& run,
                            ClientItemRunner& runner) {
  constexpr uint64_t kReferencesMin = 10, kReferencesMax = 1000000;  // the server's, of a sample; enough for anybody
  OffsetTuningOptions options;
  options.references_max =
      references_max == 0 ? 0 : static_cast<uint32_t>(std::clamp(references_max, kReferencesMin, kReferencesMax));
  std::optional<ProgressLine> progress;
  std::string shown;
  options.on_progress = [&](const EvalMethod& method, const std::string& collection, const auto& event) {
    const std::string title = absl::StrCat("references of ", collection, " scored for ", method.label);
    if (progress && title != shown) progress->Clear();
    if (title != shown) progress.emplace(session.terminal, title, event.total());
    shown = title;
    progress->Update(event.done(), "");
  };
  auto without =
      TuneOffsets(*session.client, run.tasks, run.methods, options, session.call_options(absl::InfiniteDuration()));
  if (progress) progress->Clear();
  C3PO_RETURN_IF_ERROR(without.status());
  for (const auto& [where, why] : *without) {
    absl::FPrintF(stderr, "collection %s: method %s is asked without a label offset: %s\n", where.first, where.second,
                  WithoutControls(why));
  }
  runner.ScoreWithoutOffset(*std::move(without));
  return absl::OkStatus();
}

}  // namespace c3po
