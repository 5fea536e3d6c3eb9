#include "server/rpc/doors/http/embedding_request.h"

#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

absl::StatusOr<EmbeddingRequest> Read(const std::string& body) { return ReadEmbeddingRequest(body, "tiny", "mini", 3); }

TEST(EmbeddingRequest, TakesTextsAndTokenIds) {
  EXPECT_EQ(std::get<std::string>(Read(R"({"input":"a","model":"tiny"})")->inputs.at(0)), "a");
  EXPECT_EQ(Read(R"({"input":["a","b"],"model":"mini","encoding_format":"base64"})")->base64, true);
  EXPECT_EQ(std::get<std::vector<int32_t>>(Read("{\"input\":[1,2]}")->inputs.at(0)).size(), 2u);
  EXPECT_EQ(Read("{\"input\":[[1],[2]],\"dimensions\":3}")->inputs.size(), 2u);
}

TEST(EmbeddingRequest, RefusesByName) {
  const std::pair<const char*, const char*> wrong[] = {
      {"{}", "input"},
      {R"({"input":[]})", "input"},
      {R"({"input":["a",1]})", "input[1]"},
      {R"({"input":"a","encoding_format":"int8"})", "encoding_format"},
      {R"({"input":"a","dimensions":2})", "dimensions"},
      {R"({"input":"a","truncate_prompt_tokens":5})", "truncate_prompt_tokens"}};
  for (const auto& [body, field] : wrong) {
    const auto request = Read(body);
    ASSERT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << body;
    EXPECT_TRUE(absl::StartsWith(request.status().message(), absl::StrCat(field, ": "))) << request.status();
  }
  EXPECT_EQ(Read(R"({"input":"a","model":"huge"})").status().code(), absl::StatusCode::kNotFound);
  std::string many = "{\"input\":[\"a\"";
  for (size_t i = 0; i < EmbeddingRequest::kInputsMax; ++i) many += ",\"a\"";
  EXPECT_EQ(Read(many + "]}").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(EmbeddingRequest, AnswersInNumbersOrBase64) {
  EmbeddingRequest request;
  request.model = "mini";
  EXPECT_EQ(
      EmbeddingAnswer(request, {{0.5F, -1}}, 4),
      R"({"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,-1.0]}],"model":"mini","usage":{"prompt_tokens":4,"total_tokens":4}})");
  request.base64 = true;
  EXPECT_NE(EmbeddingAnswer(request, {{0.5F}}, 4)
                .find(absl::StrCat("\"", absl::Base64Escape(std::string("\0\0\0\x3f", 4)), "\"")),
            std::string::npos);
}

}  // namespace
}  // namespace c3po
