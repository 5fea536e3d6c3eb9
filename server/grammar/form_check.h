#ifndef C3PO_SERVER_GRAMMAR_FORM_CHECK_H_
#define C3PO_SERVER_GRAMMAR_FORM_CHECK_H_

#include <cstddef>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "server/types/answer_form.h"

namespace c3po {

// Limits on what a form may be; what compiling one may take is bounded by FormCompiler.
inline constexpr size_t kFormBytesMax = 64 << 10;  // Of a schema, an expression, a grammar; of all texts together.
inline constexpr size_t kFormTextsMax = 1024;      // Of kOneOf.
inline constexpr int kSchemaDepthMax = 64;         // Of objects and arrays in a schema's JSON.

// The field that `form` stands in: "structured_output.json_schema".
std::string FieldOf(const AnswerForm& form);

// Looks at a form before anything is made of it. InvalidArgument "structured_output.FIELD: ...": empty, larger than the
// limits above, not UTF-8, or has a NUL; a schema that is not JSON, or has a keyword that the matcher would pass over,
// so that answers might not be of the schema; the path of the first one is named. O(bytes).
absl::Status CheckForm(const AnswerForm& form);

}  // namespace c3po

#endif  // C3PO_SERVER_GRAMMAR_FORM_CHECK_H_
