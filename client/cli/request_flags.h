#ifndef C3PO_CLIENT_CLI_REQUEST_FLAGS_H_
#define C3PO_CLIENT_CLI_REQUEST_FLAGS_H_

#include <CLI/CLI.hpp>
#include <memory>

#include "c3po/v1/generation.pb.h"
#include "c3po/v1/options.pb.h"

namespace c3po {

// Adds a flag for each field of the message, for OptimizationOptions as index/types/optimization_options.h lists them;
// a flag that is given sets its field in *options while the command line is read, one that is not leaves it unset, so
// that the server's default holds. `options` outlives `command`.
void AddOptimizationFlags(CLI::App& command, v1::OptimizationOptions* options);
void AddSamplingFlags(CLI::App& command, v1::SamplingOptions* options);
// One flag for each form of an answer, of which one may be given.
void AddFormFlags(CLI::App& command, v1::StructuredOutput* form);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_REQUEST_FLAGS_H_
