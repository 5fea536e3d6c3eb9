#ifndef C3PO_CLIENT_CLI_CALIBRATION_OUTPUT_H_
#define C3PO_CLIENT_CLI_CALIBRATION_OUTPUT_H_

#include <cstdio>
#include <optional>
#include <string>

#include "c3po/v1/server.pb.h"
#include "client/cli/terminal.h"
#include "client/eval/calibration.h"
#include "client/eval/time_left.h"

namespace c3po {

// Shows a calibration as it goes: progress on stderr, a line per point and the outcome in `said`.
class CalibrationPrinter {
 public:
  CalibrationPrinter(const Terminal& terminal, const CalibrationSettings& settings, std::FILE* said);
  // An answer that was asked for, not one that a journal held.
  void OnAnswer();
  void OnPoint(const TriedPoint& point);
  void Clear() { progress_.Clear(); }
  // What was chosen, what to expect of it, what it costs; or that C3PO does not help, or not beyond the labels' offset.
  void PrintOutcome(const std::string& collection, const CalibrationResult& result);

 private:
  void PrintFigures(const CalibrationResult& result) const;

  const Terminal& terminal_;
  std::FILE* const said_;
  const bool labels_;
  const v1::OptimizationOptions start_;
  const size_t points_max_;
  TimeLeft left_;
  ProgressLine progress_;
  size_t answers_ = 0;
  size_t answers_of_point_ = 0;
  size_t points_ = 0;
};

// The outcome in a sentence or two, with its figures: "No lift beyond the labels' offset: ...".
std::string OutcomeText(const std::string& collection, const CalibrationResult& result);

// What is kept beside the profile: JSON of how it was found and what to expect.
std::string CalibrationNotes(const std::string& collection, const CalibrationResult& result,
                             const v1::GetServerInfoResponse& server);

// The document of --json, one line: the notes with "collection", "stored", and where one was stored the "profile".
std::string CalibrationJson(const std::string& collection, const CalibrationResult& result,
                            const v1::GetServerInfoResponse& server,
                            const std::optional<v1::OptimizationOptions>& stored);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_CALIBRATION_OUTPUT_H_
