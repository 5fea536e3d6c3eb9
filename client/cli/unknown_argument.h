#ifndef C3PO_CLIENT_CLI_UNKNOWN_ARGUMENT_H_
#define C3PO_CLIENT_CLI_UNKNOWN_ARGUMENT_H_

#include <CLI/CLI.hpp>
#include <string>

namespace c3po {

// After `app` failed to parse: the command or flag that it does not know, named, with the nearest one that it knows.
// Empty where the failure is another. For one level of several: "c3po refs: ...".
std::string ExplainUnknownArgument(const CLI::App& app);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_UNKNOWN_ARGUMENT_H_
