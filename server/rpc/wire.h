#ifndef C3PO_SERVER_RPC_WIRE_H_
#define C3PO_SERVER_RPC_WIRE_H_

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include <cstddef>

#include "absl/status/statusor.h"

namespace c3po {

// gRPC answers a request that does not parse with UNIMPLEMENTED and no word about why. Methods that take text are
// therefore served raw, and their messages parsed here.

// InvalidArgument "FIELD: is not valid UTF-8" with the dotted path of the first such field, or "request: ..." when the
// bytes are no protobuf message at all. Cancelled: the call died before its message came.
absl::Status ParseInto(const grpc::ByteBuffer& bytes, google::protobuf::Message& message);

template <typename Request>
absl::StatusOr<Request> ParseRequest(const grpc::ByteBuffer& bytes) {
  Request request;
  if (absl::Status status = ParseInto(bytes, request); !status.ok()) return status;
  return request;
}

// An answer that could be larger is sent in parts, or without what can be left out: many clients, Python's by default,
// take messages of 4 MiB.
inline constexpr size_t kAnswerBytesMax = size_t{3} << 20;

// No answer is larger. Protobuf serializes nothing beyond 2 GiB, and gRPC aborts the process on what did not serialize.
inline constexpr size_t kMessageBytesMax = size_t{64} << 20;

// InvalidArgument: an answer of so many bytes is more than kMessageBytesMax.
absl::Status CheckMessageBytes(size_t bytes, size_t bytes_max = kMessageBytesMax);

// InvalidArgument: CheckMessageBytes. Internal: it does not serialize.
absl::StatusOr<grpc::ByteBuffer> ToBytes(const google::protobuf::Message& message, size_t bytes_max = kMessageBytesMax);

inline size_t BytesOf(const google::protobuf::Message& message) { return message.ByteSizeLong(); }
size_t BytesOf(const grpc::ByteBuffer& bytes);  // 0 where there is no message

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_WIRE_H_
