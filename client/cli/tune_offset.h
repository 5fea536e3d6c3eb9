#ifndef C3PO_CLIENT_CLI_TUNE_OFFSET_H_
#define C3PO_CLIENT_CLI_TUNE_OFFSET_H_

#include <cstdint>

#include "absl/status/status.h"
#include "c3po/v1/reference.pb.h"
#include "client/cli/session.h"
#include "client/eval/item_runner.h"
#include "client/eval/run_folder.h"

namespace c3po {

// Has the server fit a label offset, with progress on stderr, and prints it; with `json` every message as a line of it.
absl::Status TuneOffset(Session& session, const v1::TuneOffsetRequest& request, bool json);

// Has the server fit the label offsets that methods of a run ask for and that it does not hold, each to at most
// `references_max` references (0: all), with progress on stderr. What can have none is told there, and to `runner`.
absl::Status PrepareOffsets(Session& session, uint64_t references_max, const RunDescription& run,
                            ClientItemRunner& runner);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_TUNE_OFFSET_H_
