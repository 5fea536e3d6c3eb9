#ifndef C3PO_INDEX_BASE_HOST_PORT_H_
#define C3PO_INDEX_BASE_HOST_PORT_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace c3po {

// OK where `address` says all that gRPC needs: HOST:PORT with a port of 0 to 65535, an IPv6 host in brackets, a scheme
// such as dns:/// before it or not; or unix:PATH, unix-abstract:NAME. InvalidArgument says what is wrong: gRPC takes an
// address without a port to mean port 443, and a port modulo 65536.
absl::Status CheckHostPort(absl::string_view address);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_HOST_PORT_H_
