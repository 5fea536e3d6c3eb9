#ifndef C3PO_SERVER_RPC_DOORS_HTTP_OPENAI_ERROR_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_OPENAI_ERROR_H_

#include <string>

#include "absl/status/status.h"
#include "server/rpc/doors/http/http_message.h"

namespace c3po {

// A status, other than OK, as OpenAI's clients know errors, in vLLM's words:
//   {"error":{"message":"max_tokens:
//   ...","type":"BadRequestError","param":"max_tokens","code":400,"reason":"INVALID_FIELD"}}
// `param` is the field at the message's beginning, or null; `reason` is of proto/c3po/v1/errors.md. Pure.
std::string ErrorJson(const absl::Status& status);
int HttpStatusOf(const absl::Status& status);
// The whole answer: 429 has Retry-After, in seconds, and retry-after-ms, 401 has WWW-Authenticate.
HttpAnswer ErrorAnswer(const absl::Status& status);
// Of what HTTP alone refuses: 404, 405, 413, 415, 431.
HttpAnswer ErrorAnswer(int http_status, const std::string& message);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_OPENAI_ERROR_H_
