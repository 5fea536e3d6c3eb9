#ifndef C3PO_CLIENT_CLI_OFF_TOPIC_H_
#define C3PO_CLIENT_CLI_OFF_TOPIC_H_

#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "c3po/v1/options.pb.h"
#include "client/cli/session.h"

namespace c3po {

// Asks everyday prompts and those of other collections under the settings that a collection is about to get, and says
// how many answers they change (client/eval/off_topic_check.h). Where these are more than one in twenty,
// gate.max_neighbor_distance is set so that no more are, unless that would leave alone most of the collection's own
// references, too: then nothing is set, and that is told. METHOD_NONE is asked nothing. `said`: where the
// sentences go. Errors are the server's.
absl::Status SpareOffTopic(Session& session, const std::string& collection, v1::OptimizationOptions* settings,
                           std::FILE* said);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_OFF_TOPIC_H_
