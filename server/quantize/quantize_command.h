#ifndef C3PO_SERVER_QUANTIZE_QUANTIZE_COMMAND_H_
#define C3PO_SERVER_QUANTIZE_QUANTIZE_COMMAND_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/compute/matrix.h"

namespace c3po {

// `c3pod quantize IN OUT [--weights int8|int4] [--revision REV] [--json]`.
struct QuantizeCommand {
  std::string from;  // A folder, or ORG/NAME of the Hugging Face cache.
  std::string to;
  std::string revision;
  WeightFormat weights = WeightFormat::kInt4;
  bool json = false;
};

// argv[0] being "quantize". InvalidArgument says what is wrong.
absl::StatusOr<QuantizeCommand> ParseQuantizeCommand(int argc, const char* const* argv);

// Runs it: prints what was written on standard output, errors on standard error. The exit code: 0: OUT is written;
// 1: it is not; 2: a wrong command line. SIGINT, SIGTERM and SIGHUP end it with 1, once nothing half is left.
int QuantizeMain(int argc, char** argv);

}  // namespace c3po

#endif  // C3PO_SERVER_QUANTIZE_QUANTIZE_COMMAND_H_
