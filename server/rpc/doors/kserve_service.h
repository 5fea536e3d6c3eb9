#ifndef C3PO_SERVER_RPC_DOORS_KSERVE_SERVICE_H_
#define C3PO_SERVER_RPC_DOORS_KSERVE_SERVICE_H_

// inference.GRPCInferenceService, KServe's Open Inference Protocol v2 as Triton's clients speak it. Roles, limits,
// metrics, log and errors are those of c3po.v1; errors name the fields of KServe's messages.
//
//   ServerLive, ServerReady, ModelReady   what health says, without a token
//   ServerMetadata, ModelMetadata         names, and the tensors text_input and text_output
//   ModelInfer         a text in, the whole answer out (kserve_request.h)
//   ModelStreamInfer   any number of requests, one after the other, each with a response for each piece of text and a
//                      last one with parameters, triton_final_response among them. What is wrong with one request is
//                      its error_message, and the stream goes on; what concerns the caller or the server ends it.
// Others are UNIMPLEMENTED.

#include "server/rpc/door.h"

namespace c3po {

Door MakeKserveDoor(const ServiceParts& parts);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_KSERVE_SERVICE_H_
