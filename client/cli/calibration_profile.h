#ifndef C3PO_CLIENT_CLI_CALIBRATION_PROFILE_H_
#define C3PO_CLIENT_CLI_CALIBRATION_PROFILE_H_

#include "absl/status/statusor.h"
#include "c3po/v1/options.pb.h"
#include "c3po/v1/server.pb.h"
#include "client/cli/calibration_questions.h"
#include "client/cli/session.h"
#include "client/eval/calibration.h"

namespace c3po {

// Stores what a calibration ended with as the collection's profile: the method's settings, or METHOD_NONE, each with
// use_offset where the label offset belongs to it. The server learns that offset first (TuneOffset), after these
// settings. Where it cannot (UNIMPLEMENTED), or has too few references (FAILED_PRECONDITION), the profile is stored
// without, which is said: the method then only where it gained without an offset, too. Returns the profile. Errors are
// the server's, and nothing is stored then.
absl::StatusOr<v1::OptimizationOptions> StoreCalibration(Session& session, const CalibrateFlags& flags,
                                                         const CalibrationResult& result,
                                                         const v1::GetServerInfoResponse& info);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_CALIBRATION_PROFILE_H_
