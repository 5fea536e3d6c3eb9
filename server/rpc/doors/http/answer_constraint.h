#ifndef C3PO_SERVER_RPC_DOORS_HTTP_ANSWER_CONSTRAINT_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_ANSWER_CONSTRAINT_H_

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/rpc/doors/http/json_fields.h"
#include "server/types/answer_form.h"

namespace c3po {

// The form that a request's answers have to have, and the field that says so, "response_format.json_schema.schema".
struct AnswerConstraint {
  AnswerForm form;
  std::string field;
};

// The fields by which a request constrains its answer to a schema, a grammar, a regular expression or a choice:
// OpenAI's response_format, vLLM's structured_outputs and, of its earlier versions, guided_*. All are read here.
std::vector<KnownField> ConstraintFields();

// Nothing: the answers are free. InvalidArgument "FIELD: ...": malformed, of a kind that the server does not have, or
// beside another one. A response_format of the type text is none.
absl::StatusOr<std::optional<AnswerConstraint>> ReadConstraint(const JsonFields& fields);

// `status` of the pipeline with the form called by `field`, as the request has it.
absl::Status InWordsOf(const AnswerConstraint& constraint, const absl::Status& status);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_ANSWER_CONSTRAINT_H_
