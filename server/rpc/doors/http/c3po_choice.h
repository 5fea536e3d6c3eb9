#ifndef C3PO_SERVER_RPC_DOORS_HTTP_C3PO_CHOICE_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_C3PO_CHOICE_H_

#include "absl/status/status.h"
#include "c3po/v1/options.pb.h"
#include "server/rpc/doors/http/json_fields.h"

namespace c3po {

// Reads a request's `c3po` object, which openai's clients send by `extra_body`, into `options`: fields of
// OptimizationOptions by their names in options.proto or in protobuf's JSON, values as protobuf's JSON writes them;
// `method` also by its word, "ngd". InvalidArgument "c3po.FIELD: ...": no such option, or no value of it. True where
// there is such an object.
absl::StatusOr<bool> ReadC3poChoice(const JsonFields& fields, v1::OptimizationOptions& options);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_C3PO_CHOICE_H_
