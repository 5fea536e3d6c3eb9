#ifndef C3PO_SERVER_RPC_DOORS_VLLM_SERVICE_H_
#define C3PO_SERVER_RPC_DOORS_VLLM_SERVICE_H_

// vllm.grpc.engine.VllmEngine, as gateways speak it to a vLLM worker: smg, llm-d. Roles, limits, metrics, log and
// errors are those of c3po.v1; errors name the fields of vLLM's messages.
//
//   Generate         ids or a text in, ids out (vllm_generate_reactor.h)
//   Embed            ids in; the server's embedding of their text, of unit length: by the sentence encoder, or by the
//                    model where it is its own embedder
//   Abort            ends the caller's own Generate calls by their ids; an id that nobody has is no error
//   HealthCheck      what grpc.health.v1 says, without a token; Unavailable while the server loads
//   GetModelInfo     what a gateway has to know: names, sizes, end tokens, the tokenizer's folder, sampling defaults
//   GetServerInfo, GetLoads   requests running and waiting, cache, tokens a second
//   GetTokenizer     the model folder's tokenizer files as a ZIP archive (tokenizer_archive.h)
//   FlushCache, StartProfile, StopProfile, SubscribeKvEvents   UNIMPLEMENTED

#include "server/rpc/door.h"

namespace c3po {

Door MakeVllmDoor(const ServiceParts& parts);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_VLLM_SERVICE_H_
