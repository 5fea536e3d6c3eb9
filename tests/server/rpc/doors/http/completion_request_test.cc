// Table-driven: a body, and what becomes of it.
#include "server/rpc/doors/http/completion_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <variant>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr int32_t kEndTokens[] = {7, 256};
const ServedModel kServed{"tiny", 512, kEndTokens, 99, 4};

absl::StatusOr<CompletionRequest> Text(const std::string& members) {
  return ReadTextRequest(absl::StrCat("{\"prompt\":\"hi\"", members.empty() ? "" : ",", members, "}"), kServed);
}

absl::StatusOr<CompletionRequest> Chat(const std::string& members) {
  return ReadChatRequest(
      absl::StrCat(R"({"messages":[{"role":"user","content":"hi"}])", members.empty() ? "" : ",", members, "}"),
      kServed);
}

const Conversation& ConversationOf(const CompletionRequest& request) {
  return std::get<Conversation>(request.prompts.at(0));
}

// The field and the beginning of what is said of it.
void ExpectRefused(const absl::StatusOr<CompletionRequest>& request, absl::string_view field) {
  ASSERT_EQ(request.status().code(), absl::StatusCode::kInvalidArgument) << field << ": " << request.status();
  EXPECT_TRUE(absl::StartsWith(request.status().message(), absl::StrCat(field, ": "))) << request.status();
}

TEST(CompletionRequest, LeftOutMeansWhatItMeansToVllm) {
  const auto text = Text("");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->sampling.temperature, 1);
  EXPECT_EQ(text->sampling.max_tokens, 16);
  EXPECT_FALSE(text->max_tokens_given);
  EXPECT_EQ(text->sampling.seed, 99u);
  EXPECT_EQ(text->sampling.logprobs, -1);
  EXPECT_EQ(text->sampling.prompt_logprobs, -1);
  EXPECT_EQ(text->model, "tiny");
  EXPECT_FALSE(text->optimizes);
  EXPECT_FALSE(text->stream);
  EXPECT_THAT(text->unknown, IsEmpty());
  const auto chat = Chat("");
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_EQ(chat->sampling.max_tokens, 512);
  EXPECT_FALSE(chat->max_tokens_given);
  EXPECT_TRUE(ConversationOf(*chat).add_generation_prompt);
}

TEST(CompletionRequest, PromptsMayBeTextsOrTokenIds) {
  const auto ids = [](const PromptInput& input) { return std::get<std::vector<int32_t>>(input); };
  const auto read = [](const std::string& prompt) { return ReadTextRequest("{\"prompt\":" + prompt + "}", kServed); };
  EXPECT_EQ(std::get<std::string>(read(R"("a\u00e9")")->prompts.at(0)), "a\xc3\xa9");
  EXPECT_EQ(read(R"(["a","b"])")->prompts.size(), 2u);
  EXPECT_THAT(ids(read("[1,2.0,3]")->prompts.at(0)), ElementsAre(1, 2, 3));
  const auto two = read("[[1,2],[3]]");
  ASSERT_EQ(two->prompts.size(), 2u);
  EXPECT_THAT(ids(two->prompts.at(1)), ElementsAre(3));
  const std::pair<const char*, const char*> wrong[] = {{"[]", "prompt"},
                                                       {"null", "prompt"},
                                                       {"5", "prompt"},
                                                       {"{}", "prompt"},
                                                       {R"(["a",1])", "prompt[1]"},
                                                       {"[1,\"a\"]", "prompt[1]"},
                                                       {"[[1],2]", "prompt[1]"},
                                                       {"[[1],[-1]]", "prompt[1][0]"},
                                                       {"[1,2147483648]", "prompt[1]"},
                                                       {"[1.5]", "prompt[0]"},
                                                       {R"(["a","b","c","d","e"])", "prompt"}};
  for (const auto& [prompt, field] : wrong) ExpectRefused(read(prompt), field);
}

TEST(CompletionRequest, ReadsSampling) {
  const auto request = Text(
      R"("temperature":0.5,"top_p":0.9,"top_k":5,"min_p":0.1,"repetition_penalty":1.2,"seed":-1,"n":2,"best_of":2,
         "max_tokens":7,"ignore_eos":true,"stop":["x","y"],"logit_bias":{"9":-200,"3":1.5},"logprobs":3,
         "skip_special_tokens":false,"return_tokens_as_token_ids":true,"request_id":"r","user":"u")");
  ASSERT_TRUE(request.ok()) << request.status();
  const SamplingParams& s = request->sampling;
  EXPECT_EQ(s.temperature, 0.5);
  EXPECT_EQ(s.top_p, 0.9);
  EXPECT_EQ(s.top_k, 5);
  EXPECT_EQ(s.min_p, 0.1);
  EXPECT_EQ(s.repetition_penalty, 1.2);
  EXPECT_EQ(s.seed, static_cast<uint64_t>(-1));
  EXPECT_EQ(s.n, 2);
  EXPECT_EQ(s.max_tokens, 7);
  EXPECT_TRUE(request->max_tokens_given);
  EXPECT_TRUE(s.ignore_eos);
  EXPECT_THAT(s.stop, ElementsAre("x", "y"));
  ASSERT_EQ(s.logit_bias.size(), 2u);
  EXPECT_EQ(s.logit_bias[0].token_id, 3);
  EXPECT_EQ(s.logit_bias[1].bias, -100);  // vLLM's clamp.
  EXPECT_EQ(s.logprobs, 3);
  EXPECT_EQ(s.prompt_logprobs, -1);
  EXPECT_FALSE(request->skip_special_tokens);
  EXPECT_TRUE(request->tokens_as_ids);
  EXPECT_EQ(request->request_id, "r");
  EXPECT_EQ(Text("\"top_k\":-1")->sampling.top_k, 0);
  EXPECT_EQ(Text("\"temperature\":1e-6")->sampling.temperature, 0);
  EXPECT_THAT(Text("\"stop\":\"x\"")->sampling.stop, ElementsAre("x"));
  EXPECT_EQ(Text("\"stop_token_ids\":[7]")->sampling.ignore_eos, false);
}

TEST(CompletionRequest, EchoWithLogprobsAsksForThePromptsOwn) {
  const auto harness = Text(R"("echo":true,"logprobs":1,"max_tokens":1,"temperature":0,"seed":1234)");
  ASSERT_TRUE(harness.ok()) << harness.status();
  EXPECT_TRUE(harness->echo);
  EXPECT_FALSE(harness->only_prompt);
  EXPECT_EQ(harness->sampling.prompt_logprobs, 1);
  const auto none = Text(R"("echo":true,"max_tokens":0)");
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_TRUE(none->only_prompt);
  EXPECT_EQ(none->sampling.max_tokens, 1);
  EXPECT_EQ(none->sampling.prompt_logprobs, -1);
}

TEST(CompletionRequest, ReadsStreamOptions) {
  const auto request = Chat(R"("stream":true,"stream_options":{"include_usage":true,"new_one":1})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_TRUE(request->stream);
  EXPECT_TRUE(request->include_usage);
  EXPECT_FALSE(request->continuous_usage);
  EXPECT_THAT(request->unknown, ElementsAre("stream_options.new_one"));
  ExpectRefused(Chat(R"("stream_options":{"include_usage":true})"), "stream_options");
  ExpectRefused(Chat(R"("stream":true,"stream_options":[])"), "stream_options");
  ExpectRefused(Chat(R"("stream":true,"stream_options":{"include_usage":1})"), "stream_options.include_usage");
}

TEST(CompletionRequest, UnknownFieldsAreIgnoredAndNamed) {
  const auto request = Text(R"("wings":2,"beak":{"a":1})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->unknown, ElementsAre("beak", "wings"));
}

// What others know and is not done here, each with a value that asks for it.
TEST(CompletionRequest, RefusesWhatItCannotDoByName) {
  const std::pair<const char*, const char*> of_both[] = {{"frequency_penalty", "0.5"},
                                                         {"presence_penalty", "-1"},
                                                         {"min_tokens", "3"},
                                                         {"use_beam_search", "true"},
                                                         {"include_stop_str_in_output", "true"},
                                                         {"truncate_prompt_tokens", "-1"},
                                                         {"allowed_token_ids", "[1]"},
                                                         {"bad_words", "[\"a\"]"},
                                                         {"logits_processors", "[\"a\"]"},
                                                         {"priority", "1"},
                                                         {"return_token_ids", "true"},
                                                         {"kv_transfer_params", "{\"a\":1}"},
                                                         {"vllm_xargs", "{\"a\":1}"},
                                                         {"best_of", "3"},
                                                         {"prompt_logprobs", "0"},
                                                         {"structural_tag", "\"a\""}};
  for (const auto& [name, value] : of_both) {
    const std::string member = absl::StrCat("\"", name, "\":", value);
    ExpectRefused(Text(member), name);
    ExpectRefused(Chat(member), name);
  }
  ExpectRefused(Text("\"suffix\":\"a\""), "suffix");
  ExpectRefused(Text("\"add_special_tokens\":false"), "add_special_tokens");
  ExpectRefused(Text("\"stop_token_ids\":[8]"), "stop_token_ids[0]");
  ExpectRefused(Text("\"stop_token_ids\":[7],\"ignore_eos\":true"), "stop_token_ids[0]");
  const std::pair<const char*, const char*> of_chats[] = {{"echo", "true"},
                                                          {"tool_choice", "\"required\""},
                                                          {"tool_choice", R"({"type":"function"})"},
                                                          {"continue_final_message", "true"},
                                                          {"chat_template", "\"a\""},
                                                          {"functions", "[{}]"},
                                                          {"audio", "{\"a\":1}"},
                                                          {"modalities", "[\"text\",\"audio\"]"},
                                                          {"top_logprobs", "3"}};
  for (const auto& [name, value] : of_chats) ExpectRefused(Chat(absl::StrCat("\"", name, "\":", value)), name);
  ExpectRefused(Chat(R"("logprobs":true,"top_logprobs":21)"), "top_logprobs");
}

TEST(CompletionRequest, TakesTheFormOfItsAnswers) {
  using Kind = AnswerForm::Kind;
  const struct {
    const char* member;
    AnswerForm form;
    const char* field;
  } cases[] = {
      {R"("response_format":{"type":"json_object"})", {Kind::kJsonObject, "", {}}, "response_format"},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"string"}}})",
       {Kind::kJsonSchema, R"({"type":"string"})", {}},
       "response_format.json_schema.schema"},
      {R"("structured_outputs":{"json":{"type":"null"}})",
       {Kind::kJsonSchema, R"({"type":"null"})", {}},
       "structured_outputs.json"},
      {R"("structured_outputs":{"regex":"a+"})", {Kind::kRegex, "a+", {}}, "structured_outputs.regex"},
      {R"("structured_outputs":{"choice":["a","b"]})", {Kind::kOneOf, "", {"a", "b"}}, "structured_outputs.choice"},
      {R"("structured_outputs":{"json_object":true})", {Kind::kJsonObject, "", {}}, "structured_outputs.json_object"},
      {R"("guided_json":"{\"type\":\"null\"}")", {Kind::kJsonSchema, R"({"type":"null"})", {}}, "guided_json"},
      {R"("guided_grammar":"root ::= \"a\"")", {Kind::kGrammar, R"(root ::= "a")", {}}, "guided_grammar"},
      {R"("guided_choice":["a"])", {Kind::kOneOf, "", {"a"}}, "guided_choice"}};
  for (const auto& one : cases) {
    for (const auto& request : {Text(one.member), Chat(one.member)}) {
      ASSERT_TRUE(request.ok()) << one.member << ": " << request.status();
      ASSERT_TRUE(request->constraint.has_value()) << one.member;
      EXPECT_EQ(request->constraint->form, one.form) << one.member;
      EXPECT_EQ(request->constraint->field, one.field);
      EXPECT_THAT(request->unknown, IsEmpty());
    }
  }
  EXPECT_FALSE(Text(R"("response_format":{"type":"text"},"structured_outputs":{"json_object":false})")->constraint);
}

TEST(CompletionRequest, RefusesFormsThatItDoesNotHave) {
  const std::pair<const char*, const char*> cases[] = {
      {R"("response_format":{"type":"structural_tag"})", "response_format.type"},
      {R"("response_format":{"type":"json_schema"})", "response_format.json_schema"},
      {R"("response_format":{"type":"json_schema","json_schema":{"name":"n"}})", "response_format.json_schema.schema"},
      {R"("response_format":"json_object")", "response_format"},
      {R"("structured_outputs":{"structural_tag":"a"})", "structured_outputs.structural_tag"},
      {R"("structured_outputs":{"regex":1})", "structured_outputs.regex"},
      {R"("structured_outputs":[])", "structured_outputs"},
      {R"("guided_choice":[1])", "guided_choice[0]"},
      {R"("guided_regex":"a","guided_choice":["a"])", "guided_choice"},
      {R"("response_format":{"type":"json_object"},"structured_outputs":{"regex":"a"})", "structured_outputs.regex"}};
  for (const auto& [member, field] : cases) ExpectRefused(Text(member), field);
}

TEST(CompletionRequest, NamesAFormByItsField) {
  const AnswerConstraint constraint{{AnswerForm::Kind::kJsonSchema, "{}", {}}, "guided_json"};
  EXPECT_EQ(InWordsOf(constraint, absl::InvalidArgumentError("structured_output.json_schema: .a is not")).message(),
            "guided_json: .a is not");
  EXPECT_EQ(InWordsOf(constraint, absl::InvalidArgumentError("structured_output: no")).message(), "guided_json: no");
  EXPECT_EQ(InWordsOf(constraint, absl::InvalidArgumentError("sampling.n: no")).message(), "sampling.n: no");
}

TEST(CompletionRequest, TakesTheSameFieldsWhereTheySayNothing) {
  const auto request = Chat(
      R"("frequency_penalty":0,"presence_penalty":0.0,"n":1,"best_of":1,"response_format":{"type":"text"},"tools":null,
         "tool_choice":"auto","bad_words":[],"vllm_xargs":{},"modalities":["text"],"store":false,"logprobs":false,
         "guided_json_object":false,"echo":false,"priority":0)");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_THAT(request->unknown, IsEmpty());
}

TEST(CompletionRequest, NamesTheFieldThatIsOfAWrongKind) {
  const std::pair<const char*, const char*> wrong[] = {{"\"temperature\":\"hot\"", "temperature"},
                                                       {"\"max_tokens\":1.5", "max_tokens"},
                                                       {"\"max_tokens\":9999999999", "max_tokens"},
                                                       {"\"stop\":5", "stop"},
                                                       {"\"stop\":[\"a\",5]", "stop[1]"},
                                                       {"\"stream\":1", "stream"},
                                                       {"\"seed\":\"a\"", "seed"},
                                                       {"\"logit_bias\":[]", "logit_bias"},
                                                       {"\"logit_bias\":{\"a\":1}", "logit_bias"},
                                                       {"\"logit_bias\":{\"5\":\"a\"}", "logit_bias[5]"},
                                                       {"\"logit_bias\":{\"5\":1,\"05\":1}", "logit_bias[5]"},
                                                       {"\"logprobs\":true", "logprobs"},
                                                       {"\"logprobs\":-1", "logprobs"},
                                                       {"\"model\":5", "model"},
                                                       {"\"c3po\":5", "c3po"}};
  for (const auto& [member, field] : wrong) ExpectRefused(Text(member), field);
}

TEST(CompletionRequest, ChoosesTheOptimization) {
  const auto request = Chat(R"("c3po":{"method":"ngd","collection":"math","steps":3,"criticalLayers":[1,2],
      "gate":{"neighbor_distance_quantile":0.5},"filter":{"must_not":[{"key":"a","in":["b","c"]}]},"objective":"OBJECTIVE_PAIRS","k":null})");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_TRUE(request->optimizes);
  EXPECT_EQ(request->optimization.method(), v1::METHOD_NEIGHBORHOOD_GRADIENT_DESCENT);
  EXPECT_EQ(request->optimization.collection(), "math");
  EXPECT_EQ(request->optimization.steps(), 3u);
  EXPECT_EQ(request->optimization.critical_layers_size(), 2);
  EXPECT_EQ(request->optimization.objective(), v1::OBJECTIVE_PAIRS);
  ASSERT_EQ(request->optimization.filter().must_not_size(), 1);
  EXPECT_EQ(request->optimization.filter().must_not(0).in_size(), 2);
  EXPECT_EQ(request->optimization.neighborhood_case(), v1::OptimizationOptions::NEIGHBORHOOD_NOT_SET);
  EXPECT_EQ(Chat(R"("c3po":{"method":"METHOD_NONE"})")->optimization.method(), v1::METHOD_NONE);
  EXPECT_EQ(Chat(R"("c3po":{"min_index_generation":7})")->optimization.min_index_generation(), 7u);
  const std::pair<const char*, const char*> wrong[] = {
      {R"({"wings":1})", "c3po.wings"},
      {R"({"steps":-1})", "c3po.steps"},
      {R"({"method":"fly"})", "c3po.method"},
      {R"({"steps":"a"})", "c3po.steps"},
      {R"({"gate":{"wings":1}})", "c3po.gate"},
      {R"({"k":1,"epsilon":0.5})", "c3po.k"},
      {R"({"filter":[]})", "c3po.filter"},
      {R"({"filter":{"must":[{"key":"a","range":{"gt":"b"}}]}})", "c3po.filter"}};
  for (const auto& [choice, field] : wrong) ExpectRefused(Chat(absl::StrCat("\"c3po\":", choice)), field);
  EXPECT_THAT(std::string(Chat(R"("c3po":{"filter":{"must":[{"wings":1}]}})").status().message()),
              testing::HasSubstr("wings"));
}

TEST(CompletionRequest, AModelsNameMayChooseTheCollection) {
  const auto request = Text("\"model\":\"tiny@math\"");
  ASSERT_TRUE(request.ok()) << request.status();
  EXPECT_EQ(request->optimization.collection(), "math");
  EXPECT_TRUE(request->optimizes);
  EXPECT_EQ(request->model, "tiny@math");
  EXPECT_EQ(Text("\"model\":\"huge\"").status().code(), absl::StatusCode::kNotFound);
  ExpectRefused(Text("\"model\":\"tiny@\""), "model");
  ExpectRefused(Text(R"("model":"tiny@a","c3po":{"collection":"b"})"), "model");
}

TEST(CompletionRequest, ToolsAndFurtherFieldsReachTheTemplateAsTheyWereWritten) {
  const auto request = ReadChatRequest(R"({"messages":[
    {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"name":"Ann"},
    {"role":"assistant","content":null,"refusal":null,"tool_calls":[{"id":"1","type":"function",
       "function":{"name":"f","arguments":"{\"z\":1.0,\"a\":2}"}}]},
    {"role":"tool","content":"3","tool_call_id":"1","wings":1}],
    "tools":[{"type":"function","function":{"name":"f","parameters":{"z":1.0,"a":2}}}],
    "documents":[{"text":"d"}],"chat_template_kwargs":{"b":1,"a":2},"add_generation_prompt":false})",
                                       kServed);
  ASSERT_TRUE(request.ok()) << request.status();
  const Conversation& chat = ConversationOf(*request);
  ASSERT_EQ(chat.messages.size(), 3u);
  EXPECT_EQ(chat.messages[0].content, "a\nb");
  EXPECT_EQ(chat.messages[0].fields_json, R"({"name":"Ann"})");
  EXPECT_EQ(chat.messages[1].content, "");
  EXPECT_EQ(chat.messages[1].fields_json,
            R"({"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":{"z":1.0,"a":2}}}]})");
  EXPECT_EQ(chat.messages[2].fields_json, R"({"tool_call_id":"1"})");
  EXPECT_THAT(chat.tools_json,
              ElementsAre(R"({"type":"function","function":{"name":"f","parameters":{"z":1.0,"a":2}}})"));
  EXPECT_THAT(chat.documents_json, ElementsAre(R"({"text":"d"})"));
  EXPECT_EQ(chat.template_kwargs_json, R"({"b":1,"a":2})");
  EXPECT_FALSE(chat.add_generation_prompt);
  EXPECT_THAT(request->unknown, ElementsAre("messages[2].wings"));
  EXPECT_TRUE(CheckConversation(chat).ok());
}

TEST(CompletionRequest, ArgumentsThatAreNoObjectStayAText) {
  const auto of = [](const std::string& arguments) {
    const auto request =
        ReadChatRequest(absl::StrCat(R"({"messages":[{"role":"assistant","tool_calls":[{"function":{"arguments":)",
                                     arguments, "}}]}]}"),
                        kServed);
    return ConversationOf(*request).messages[0].fields_json;
  };
  EXPECT_EQ(of(R"("{")"), R"({"tool_calls":[{"function":{"arguments":"{"}}]})");
  EXPECT_EQ(of(R"("")"), R"({"tool_calls":[{"function":{"arguments":{}}}]})");
  EXPECT_EQ(of(R"({"a":1})"), R"({"tool_calls":[{"function":{"arguments":{"a":1}}}]})");
}

TEST(CompletionRequest, NamesTheMessageThatIsWrong) {
  const std::pair<const char*, const char*> wrong[] = {
      {R"("a")", "messages"},
      {R"(["a"])", "messages[0]"},
      {R"([{"content":"a"}])", "messages[0].role"},
      {R"([{"role":5}])", "messages[0].role"},
      {R"([{"role":"user","content":5}])", "messages[0].content"},
      {R"([{"role":"user","content":[{"type":"image_url"}]}])", "messages[0].content[0].type"},
      {R"([{"role":"user","content":["a"]}])", "messages[0].content[0]"},
      {R"([{"role":"user","content":"a","function_call":{"a":1}}])", "messages[0].function_call"}};
  for (const auto& [messages, field] : wrong)
    ExpectRefused(ReadChatRequest(absl::StrCat("{\"messages\":", messages, "}"), kServed), field);
}

TEST(CompletionRequest, ThePipelinesFieldsAreCalledAsTheClientDoes) {
  const std::pair<const char*, const char*> words[] = {{"sampling.max_tokens: x", "max_tokens: x"},
                                                       {"token_ids.ids[3]: x", "prompt[3]: x"},
                                                       {"token_ids: x", "prompt: x"},
                                                       {"prompt: x", "prompt: x"},
                                                       {"chat.messages[1].role: x", "messages[1].role: x"},
                                                       {"chat.tools_json[0]: x", "tools[0]: x"},
                                                       {"chat: x", "messages: x"},
                                                       {"optimization.k: x", "c3po.k: x"}};
  for (const auto& [ours, theirs] : words)
    EXPECT_EQ(InTheirWords(absl::InvalidArgumentError(ours), CompletionFieldNames()).message(), theirs);
}

}  // namespace
}  // namespace c3po
