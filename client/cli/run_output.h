#ifndef C3PO_CLIENT_CLI_RUN_OUTPUT_H_
#define C3PO_CLIENT_CLI_RUN_OUTPUT_H_

#include <string>

#include "absl/status/status.h"

namespace c3po {

// Prints the tables of a run's folder to stdout, and writes its HTML report to `report_file` unless that is empty.
absl::Status PrintRun(const std::string& folder, const std::string& report_file);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_RUN_OUTPUT_H_
