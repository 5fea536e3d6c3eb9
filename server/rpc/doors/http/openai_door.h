#ifndef C3PO_SERVER_RPC_DOORS_HTTP_OPENAI_DOOR_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_OPENAI_DOOR_H_

// OpenAI's HTTP protocol, as vLLM serves it. Roles, limits, metrics, log and errors are those of c3po.v1; errors name
// the request's own fields. The way of a request:
//
//   http_port ▶ http_connection ▶ (this) ▶ http_call: the entrance ▶ completion_call ▶ pipeline
//   accepts      reads the head    routes     holds the answer         reads the body
//
//   POST /v1/chat/completions, /v1/completions   CompletionCall
//   POST /v1/embeddings                          EmbeddingCall
//   GET  /v1/models, /v1/models/NAME             ModelCall
//   GET  /health                                 200 while health says SERVING, else 503; no body, no token

#include "server/rpc/call_context.h"
#include "server/rpc/doors/http/http_connection.h"

namespace c3po {

// `parts` outlive the router.
HttpRouter OpenAiRouter(const ServiceParts& parts);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_OPENAI_DOOR_H_
