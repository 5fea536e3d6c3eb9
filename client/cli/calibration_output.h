#ifndef C3PO_CLIENT_CLI_CALIBRATION_OUTPUT_H_
#define C3PO_CLIENT_CLI_CALIBRATION_OUTPUT_H_

#include <string>

#include "c3po/v1/server.pb.h"
#include "client/cli/terminal.h"
#include "client/eval/calibration.h"
#include "client/eval/time_left.h"

namespace c3po {

// Shows a calibration as it goes: progress on stderr, a line per point and the outcome on stdout.
class CalibrationPrinter {
 public:
  CalibrationPrinter(const Terminal& terminal, const CalibrationSettings& settings);
  // An answer that was asked for, not one that a journal held.
  void OnAnswer();
  void OnPoint(const TriedPoint& point);
  void Clear() { progress_.Clear(); }
  // What was chosen, what to expect of it, what it costs; or that C3PO does not help.
  void PrintOutcome(const std::string& collection, const CalibrationResult& result);

 private:
  const Terminal& terminal_;
  const v1::OptimizationOptions start_;
  const size_t points_max_;
  TimeLeft left_;
  ProgressLine progress_;
  size_t answers_ = 0;
  size_t answers_of_point_ = 0;
  size_t points_ = 0;
};

// What is kept beside the profile: JSON of how it was found and what to expect.
std::string CalibrationNotes(const CalibrationResult& result, const v1::GetServerInfoResponse& server);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_CALIBRATION_OUTPUT_H_
