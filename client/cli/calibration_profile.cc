#include "client/cli/calibration_profile.h"

#include <cstdio>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cli/calibration_output.h"
#include "client/cli/explain.h"
#include "client/cli/terminal.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

// Absent where the server has no such call, or too little to learn from: said.
absl::StatusOr<std::optional<v1::OffsetInfo>> LearnOffset(Session& session, const CalibrateFlags& flags,
                                                          const v1::OptimizationOptions& settings) {
  v1::TuneOffsetRequest request;
  request.set_collection(flags.collection);
  *request.mutable_optimization() = settings;
  request.mutable_optimization()->set_use_profile(false);  // These settings take its place.
  request.set_max_references(flags.offset_references);
  std::optional<v1::OffsetInfo> learned;
  std::optional<ProgressLine> progress;
  const absl::Status status = session.client->TuneOffset(
      request,
      [&](const v1::TuneOffsetResponse& event) {
        if (!progress) progress.emplace(session.terminal, "references", event.total());
        progress->Update(event.done(), "scored for the labels' offset");
        if (event.has_stored()) learned = event.stored();
        return true;
      },
      session.call_options(absl::InfiniteDuration()));
  if (progress) progress->Clear();
  if (absl::IsUnimplemented(status)) {
    absl::FPrintF(flags.said(), "This server cannot learn a label offset: the profile is stored without it.\n");
    return std::optional<v1::OffsetInfo>();
  }
  if (absl::IsFailedPrecondition(status)) {
    absl::FPrintF(flags.said(), "There is no label offset, the profile is stored without it: %s\n", status.message());
    return std::optional<v1::OffsetInfo>();
  }
  C3PO_RETURN_IF_ERROR(status);
  if (!learned) {
    absl::FPrintF(flags.said(), "The server learned no label offset: the profile is stored without it.\n");
    return learned;
  }
  absl::FPrintF(flags.said(), "Learned the label offset %s.\n", DescribeOffset(*learned));
  return learned;
}

v1::OptimizationOptions ModelAlone() {
  v1::OptimizationOptions options;
  options.set_method(v1::METHOD_NONE);
  return options;
}

}  // namespace

absl::StatusOr<v1::OptimizationOptions> StoreCalibration(Session& session, const CalibrateFlags& flags,
                                                         const CalibrationResult& result,
                                                         const v1::GetServerInfoResponse& info) {
  v1::OptimizationOptions profile = result.helps() ? result.chosen : ModelAlone();
  profile.clear_collection();
  profile.clear_use_profile();
  profile.clear_exclude_reference_ids();
  profile.clear_return_pathways();
  profile.clear_min_index_generation();
  if (result.use_offset()) {
    C3PO_ASSIGN_OR_RETURN(const std::optional<v1::OffsetInfo> offset, LearnOffset(session, flags, profile));
    if (!offset && result.helps() && !(result.lift.value > 0)) {
      absl::FPrintF(flags.said(), "Without an offset the method gains nothing: METHOD_NONE is stored.\n");
      profile = ModelAlone();
    }
    if (offset) profile.set_use_offset(true);
  }
  v1::SetProfileRequest request;
  request.set_collection(flags.collection);
  *request.mutable_profile() = profile;
  request.set_notes(CalibrationNotes(flags.collection, result, info));
  C3PO_RETURN_IF_ERROR(session.client->SetProfile(request, session.call_options()).status());
  absl::FPrintF(flags.said(),
                "Stored as the profile of collection %s: its requests use it unless they set a field themselves.\n",
                flags.collection);
  return profile;
}

}  // namespace c3po
