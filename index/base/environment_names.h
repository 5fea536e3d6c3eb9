#ifndef C3PO_INDEX_BASE_ENVIRONMENT_NAMES_H_
#define C3PO_INDEX_BASE_ENVIRONMENT_NAMES_H_

#include <string>
#include <vector>

namespace c3po {

// What `c3po`, the Python clients and the scripts read. The server has settings of its own by some of these names.
const std::vector<std::string>& ClientVariables();

// The names of the environment that begin with C3PO_, ascending, but for those that Kubernetes and Docker make for a
// service called c3po: C3PO_SERVICE_HOST, C3PO_PORT_50051_TCP, ...
std::vector<std::string> VariablesSet();

// One line for each of VariablesSet that no client reads, though its name is near to one that it does. Others are the
// server's or a script's, which share the prefix: only what follows it is compared.
std::vector<std::string> MisspelledClientVariables();

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_ENVIRONMENT_NAMES_H_
