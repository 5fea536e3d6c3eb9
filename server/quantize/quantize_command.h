#ifndef C3PO_SERVER_QUANTIZE_QUANTIZE_COMMAND_H_
#define C3PO_SERVER_QUANTIZE_QUANTIZE_COMMAND_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/compute/matrix.h"

namespace c3po {

// `c3pod quantize IN [OUT] [--weights int8|int4] [--calibration TEXT] [--check TEXT] [--check-window TOKENS]
// [--revision REV] [--json]`.
struct QuantizeCommand {
  std::string from;  // A folder, or ORG/NAME of the Hugging Face cache.
  std::string to;    // Empty: nothing is written, and `check` is there.
  std::string revision;
  std::string calibration;  // A text file, whose activations weigh the columns (calibration.h); empty: none.
  std::string check;        // A text file, on which what it costs is measured (model_check.h); empty: it is not.
  int check_window = 512;   // tokens
  WeightFormat weights = WeightFormat::kInt4;
  bool json = false;
};

// argv[0] being "quantize". InvalidArgument says what is wrong.
absl::StatusOr<QuantizeCommand> ParseQuantizeCommand(int argc, const char* const* argv);

// Runs it: prints what was written and measured on standard output, errors on standard error. The exit code: 0: OUT is
// written and measured, as far as that was asked for; 1: it is not; 2: a wrong command line. While OUT is written
// SIGINT, SIGTERM and SIGHUP end it with 1, once nothing half is left. What is measured is OUT; an OUT that cannot be
// measured stays.
int QuantizeMain(int argc, char** argv);

}  // namespace c3po

#endif  // C3PO_SERVER_QUANTIZE_QUANTIZE_COMMAND_H_
