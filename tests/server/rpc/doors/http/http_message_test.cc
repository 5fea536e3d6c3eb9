#include "server/rpc/doors/http/http_message.h"

#include <gtest/gtest.h>

namespace c3po {
namespace {

TEST(HttpMessage, HeadsSayHowTheBodyEnds) {
  HttpHead head;
  EXPECT_EQ(HeadText(head, HttpFraming::kLength, 5, true),
            "HTTP/1.1 200 OK\r\nserver: c3pod\r\ncontent-type: application/json\r\ncontent-length: 5\r\nconnection: "
            "keep-alive\r\n\r\n");
  head.status = 429;
  head.content_type = "";
  head.headers.push_back({"retry-after", "1"});
  EXPECT_EQ(HeadText(head, HttpFraming::kChunked, 5, false),
            "HTTP/1.1 429 Too Many Requests\r\nserver: c3pod\r\nretry-after: 1\r\ntransfer-encoding: "
            "chunked\r\nconnection: close\r\n\r\n");
  EXPECT_EQ(HeadText(HttpHead(), HttpFraming::kToEnd, 0, false).find("length"), std::string::npos);
}

TEST(HttpMessage, ChunksHaveTheirLengthInHexadecimal) {
  EXPECT_EQ(ChunkText(std::string(26, 'x')), "1a\r\n" + std::string(26, 'x') + "\r\n");
  EXPECT_EQ(ChunkText(""), "0\r\n\r\n");
}

}  // namespace
}  // namespace c3po
