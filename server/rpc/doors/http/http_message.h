#ifndef C3PO_SERVER_RPC_DOORS_HTTP_HTTP_MESSAGE_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_HTTP_MESSAGE_H_

// What the two sides of an HTTP exchange are, free of any library's types.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "server/rpc/entrance.h"

namespace c3po {

class HttpCall;

// A request whose head was read.
struct HttpRequest {
  std::string method;        // "POST"
  std::string path;          // "/v1/completions", without a query
  std::string content_type;  // Without parameters, in lowercase.
  std::string request_id;    // X-Request-Id, if it is printable ASCII of at most 128 bytes.
  CallOrigin origin;
};

struct HttpHeader {
  std::string name, value;
};

struct HttpHead {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<HttpHeader> headers;  // Further ones.
};

struct HttpAnswer {
  HttpHead head;
  std::string body;
};

// What is done with a request: an answer at once, or a call that reads the body and answers in its time.
struct HttpRouting {
  HttpAnswer answer;
  std::shared_ptr<HttpCall> call;  // Null: `answer` is all.
};

// How an answer's body is delimited.
enum class HttpFraming {
  kLength,   // Content-Length.
  kChunked,  // Transfer-Encoding: chunked.
  kToEnd,    // HTTP/1.0: the end of the connection.
};

// The lines of a head, with the empty one at its end. `body_bytes`: of kLength. What `head` holds must not have line
// breaks.
std::string HeadText(const HttpHead& head, HttpFraming framing, size_t body_bytes, bool keep_alive);
// One chunk of kChunked; of no bytes, the last one.
std::string ChunkText(absl::string_view bytes);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_HTTP_MESSAGE_H_
