#ifndef C3PO_SERVER_RPC_GRPC_LOG_H_
#define C3PO_SERVER_RPC_GRPC_LOG_H_

namespace c3po {

// Sends what gRPC logs through the server's own log, event "grpc": whatever bytes a client put into it, a line stays
// one JSON object, and so many a second are written at most (`lines_passed_over` tells of the others). gRPC's errors
// are warnings there, as most say what a client did wrong. Once, before gRPC is used.
void LogForGrpc();

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_GRPC_LOG_H_
