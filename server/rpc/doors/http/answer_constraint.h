#ifndef C3PO_SERVER_RPC_DOORS_HTTP_ANSWER_CONSTRAINT_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_ANSWER_CONSTRAINT_H_

#include <vector>

#include "absl/status/status.h"
#include "server/rpc/doors/http/json_fields.h"

namespace c3po {

// The fields by which a request constrains its answer to a schema, a grammar, a regular expression or a choice:
// OpenAI's response_format, vLLM's structured_outputs and, of its earlier versions, guided_*. All are read here.
std::vector<KnownField> ConstraintFields();

// InvalidArgument "response_format: ...": the server constrains no answers. A response_format of the type text is none.
absl::Status ReadConstraint(const JsonFields& fields);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_ANSWER_CONSTRAINT_H_
