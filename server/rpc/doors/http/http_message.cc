#include "server/rpc/doors/http/http_message.h"

#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

absl::string_view PhraseOf(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return status < 500 ? "Error" : "Internal Server Error";
  }
}

}  // namespace

std::string HeadText(const HttpHead& head, HttpFraming framing, size_t body_bytes, bool keep_alive) {
  std::string text = absl::StrCat("HTTP/1.1 ", head.status, " ", PhraseOf(head.status), "\r\nserver: c3pod\r\n");
  if (!head.content_type.empty()) absl::StrAppend(&text, "content-type: ", head.content_type, "\r\n");
  for (const HttpHeader& header : head.headers) absl::StrAppend(&text, header.name, ": ", header.value, "\r\n");
  if (framing == HttpFraming::kLength) absl::StrAppend(&text, "content-length: ", body_bytes, "\r\n");
  if (framing == HttpFraming::kChunked) absl::StrAppend(&text, "transfer-encoding: chunked\r\n");
  absl::StrAppend(&text, "connection: ", keep_alive ? "keep-alive" : "close", "\r\n\r\n");
  return text;
}

std::string ChunkText(absl::string_view bytes) { return absl::StrCat(absl::Hex(bytes.size()), "\r\n", bytes, "\r\n"); }

}  // namespace c3po
