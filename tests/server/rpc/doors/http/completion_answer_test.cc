#include "server/rpc/doors/http/completion_answer.h"

#include <gtest/gtest.h>

#include <string>

namespace c3po {
namespace {

AnswerFrame Frame(bool chat, bool logprobs = false) {
  AnswerFrame frame;
  frame.chat = chat;
  frame.id = "id-1";
  frame.created = 7;
  frame.model = "tiny";
  frame.logprobs = logprobs;
  frame.token_text = [](int32_t id) {
    return id == 9 ? std::string("\xc3\xa9") : std::string(1, static_cast<char>('a' + id));
  };
  return frame;
}

TEST(CompletionAnswer, EventsOfAChatAreVllms) {
  const AnswerFrame frame = Frame(true);
  EXPECT_EQ(
      RoleChunk(frame, 1),
      R"({"id":"id-1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[{"index":1,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]})");
  EXPECT_EQ(
      TextChunkOf(frame, {.text = "h\"i"}),
      R"({"id":"id-1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[{"index":0,"delta":{"content":"h\"i"},"logprobs":null,"finish_reason":null}]})");
  const std::string stop = "x";
  EXPECT_EQ(
      FinishChunk(frame, 0, {FinishReason::kStop, &stop}),
      R"({"id":"id-1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop","stop_reason":"x"}]})");
  EXPECT_EQ(
      UsageChunk(frame, {3, 4, 2}),
      R"({"id":"id-1","object":"chat.completion.chunk","created":7,"model":"tiny","choices":[],"usage":{"prompt_tokens":3,"total_tokens":7,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}})");
}

TEST(CompletionAnswer, LogprobsOfTextsHaveOffsetsInCharacters) {
  const AnswerFrame frame = Frame(false, true);
  AnswerPiece piece{.text =
                        "\xc3\xa9"
                        "b",
                    .tokens = {{9, 0, {}}, {1, -0.5F, {{0, -0.25F}, {1, -0.5F}}}},
                    .begins_prompt = true};
  EXPECT_EQ(TextChunkOf(frame, piece),
            "{\"id\":\"id-1\",\"object\":\"text_completion\",\"created\":7,\"model\":\"tiny\",\"choices\":[{\"index\":"
            "0,\"text\":\"\xc3\xa9"
            "b\",\"logprobs\":{\"text_offset\":[0,1],\"token_logprobs\":[null,-0.5],\"tokens\":[\"\xc3\xa9\",\"b\"],"
            "\"top_logprobs\":[null,{\"b\":-0.5,\"a\":-0.25}]},\"finish_reason\":null}]}");
  EXPECT_EQ(CharactersOf(frame, piece.tokens), 2u);
  AnswerFrame by_ids = frame;
  by_ids.tokens_as_ids = true;
  EXPECT_NE(TextChunkOf(by_ids, piece).find("\"tokens\":[\"token_id:9\",\"token_id:1\"]"), std::string::npos);
}

TEST(CompletionAnswer, LogprobsOfChatsHaveBytes) {
  const std::string json = TextChunkOf(Frame(true, true), {.text = "a", .tokens = {{0, -1.0F / 0.0F, {{9, -0.5F}}}}});
  EXPECT_NE(
      json.find("\"logprobs\":{\"content\":[{\"token\":\"a\",\"logprob\":-9999.0,\"bytes\":[97],\"top_logprobs\":[{"
                "\"token\":\"\xc3\xa9\",\"logprob\":-0.5,\"bytes\":[195,169]}]}]}"),
      std::string::npos)
      << json;
}

TEST(CompletionAnswer, WholeAnswersHaveUsageAndTheReport) {
  const std::string chat = WholeAnswer(Frame(true), {{{.text = "hi"}, {FinishReason::kLength, nullptr}}}, {3, 4, 0});
  EXPECT_EQ(
      chat,
      R"({"id":"id-1","object":"chat.completion","created":7,"model":"tiny","choices":[{"index":0,"message":{"role":"assistant","content":"hi","refusal":null,"tool_calls":[]},"logprobs":null,"finish_reason":"length","stop_reason":null}],"usage":{"prompt_tokens":3,"total_tokens":7,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":0}}})");
  EXPECT_EQ(WithMember("{\"a\":1}", "c3po", "{}"), R"({"a":1,"c3po":{}})");
  EXPECT_EQ(WithMember("{}", "c3po", "null"), R"({"c3po":null})");
}

TEST(CompletionAnswer, TextThatIsNoUtf8DoesNotBreakTheJson) {
  EXPECT_NE(TextChunkOf(Frame(false), {.text = "\xff"}).find("\"text\":\"\xef\xbf\xbd\""), std::string::npos);
}

TEST(CompletionAnswer, TheReportHasTheNamesOfTheProto) {
  OptimizationReport report;
  report.settings.method = Method::kNone;
  const std::string json = ReportJson(report);
  EXPECT_NE(json.find("\"method\":\"METHOD_NONE\""), std::string::npos) << json;
  EXPECT_NE(json.find("\"gate\":"), std::string::npos) << json;
}

}  // namespace
}  // namespace c3po
