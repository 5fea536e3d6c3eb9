#include "server/text/chat_renderer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/civil_time.h"
#include "server/text/utf8.h"
#include "tests/server/text/chat_case.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

using nlohmann::ordered_json;
using ::testing::HasSubstr;

absl::Time Noon() { return absl::FromCivil(absl::CivilSecond(2026, 2, 3, 12, 0, 0), absl::LocalTimeZone()); }

std::string Message(const absl::StatusOr<std::string>& prompt) { return std::string(prompt.status().message()); }

std::unique_ptr<ChatRenderer> OfTemplate(const std::string& text, JinjaRenderer::Options options = {}) {
  ChatTemplates templates;
  templates.standard = text;
  return std::make_unique<ChatRenderer>(std::move(templates), std::move(options));
}

Conversation Turns(std::vector<ConversationMessage> messages) { return {std::move(messages), {}, {}, "", true}; }

// What a message has beside role and content goes into fields_json, as it stands.
ConversationMessage MessageOf(const ordered_json& message) {
  ConversationMessage result;
  ordered_json fields = ordered_json::object();
  for (const auto& [key, value] : message.items()) {
    if (key == "role") {
      result.role = value;
    } else if (key == "content" && value.is_string()) {
      result.content = value;
    } else {
      fields[key] = value;
    }
  }
  if (!fields.empty()) result.fields_json = fields.dump();
  return result;
}

Conversation ConversationOf(const ordered_json& recorded) {
  Conversation conversation;
  for (const ordered_json& message : recorded.at("messages")) conversation.messages.push_back(MessageOf(message));
  for (const ordered_json& tool : recorded.value("tools", ordered_json::array()))
    conversation.tools_json.push_back(tool.dump());
  for (const ordered_json& document : recorded.value("documents", ordered_json::array()))
    conversation.documents_json.push_back(document.dump());
  if (recorded.contains("kwargs")) conversation.template_kwargs_json = recorded["kwargs"].dump();
  conversation.add_generation_prompt = recorded.value("add_generation_prompt", true);
  return conversation;
}

// 38 templates of model families, each with conversations of every kind, against transformers' apply_chat_template.
TEST(ChatRenderer, RendersWhatTransformersRenders) {
  std::ifstream file(absl::StrCat(C3PO_TESTDATA_DIR, "/chat/prompts.jsonl"));
  int templates = 0, prompts = 0, refused = 0, known = 0;
  for (std::string line; std::getline(file, line); ++templates) {
    ordered_json golden = ordered_json::parse(line);
    const std::string name = golden["name"];
    golden["config"]["chat_template"] = ReadText(absl::StrCat(C3PO_TESTDATA_DIR, "/chat/templates/", name, ".jinja"));
    const auto renderer = RendererOf(golden["config"].dump());
    ASSERT_TRUE(renderer.ok()) << name << ": " << renderer.status();
    known += (*renderer)->RenderedBy() != "jinja" ? 1 : 0;
    for (const ordered_json& recorded : golden["cases"]) {
      const auto prompt = (*renderer)->RenderNow(ConversationOf(recorded), Noon());
      if (recorded["prompt"].is_null()) {
        ++refused;
        EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument) << name << " " << recorded;
        EXPECT_TRUE(absl::StartsWith(prompt.status().message(), "chat")) << prompt.status();
      } else {
        ++prompts;
        ASSERT_TRUE(prompt.ok()) << name << ": " << prompt.status() << " at " << recorded["messages"];
        EXPECT_EQ(*prompt, recorded["prompt"].get<std::string>()) << name << " " << recorded["messages"];
      }
    }
  }
  EXPECT_GE(templates, 30);
  EXPECT_GE(known, 5);
  EXPECT_GE(prompts, 500);
  EXPECT_GE(refused, 30);
}

// The formats that are known in C++, held against Jinja itself here and now: whatever ChatFormat renders, it renders.
TEST(ChatRenderer, KnownFormatsAreWhatJinjaMakesOfTheirTemplates) {
  int compared = 0;
  for (const nlohmann::json& golden : ReadJsonLines(GoldenPath("chat.jsonl"))) {
    const auto known = RendererOf(golden["config"].dump());
    ASSERT_TRUE(known.ok()) << golden["name"] << ": " << known.status();
    ASSERT_NE((*known)->RenderedBy(), "jinja") << golden["name"];
    // A comment is nothing to Jinja; a statement that is no branch of any format is one to ChatFormat.
    nlohmann::json config = golden["config"];
    config["chat_template"] =
        absl::StrCat(config["chat_template"].get<std::string>(), "{% filter trim %}{% endfilter %}");
    const auto jinja = RendererOf(config.dump());
    ASSERT_TRUE(jinja.ok()) << golden["name"] << ": " << jinja.status();
    ASSERT_EQ((*jinja)->RenderedBy(), "jinja") << golden["name"];
    for (const nlohmann::json& recorded : golden["prompts"]) {
      Conversation conversation;
      for (const nlohmann::json& turn : recorded[0]) conversation.messages.push_back({turn[0], turn[1], ""});
      ASSERT_FALSE((*known)->NeedsJinja(conversation));
      const auto left = (*known)->RenderNow(conversation, Noon()), right = (*jinja)->RenderNow(conversation, Noon());
      ASSERT_EQ(left.status().code(), right.status().code()) << golden["name"] << " " << recorded << right.status();
      EXPECT_EQ(left.value_or("refused"), right.value_or("refused")) << golden["name"] << " " << recorded;
      ++compared;
    }
  }
  EXPECT_GE(compared, 150);
}

// Changes of one or two places in known templates: where one is still recognized but written otherwise, Check finds it.
TEST(ChatRenderer, WhatIsRecognizedInAChangedTemplateIsWhatJinjaMakesOfIt) {
  constexpr uint32_t kSeed = 7;
  std::mt19937 rng(kSeed);
  const std::vector<nlohmann::json> goldens = ReadJsonLines(GoldenPath("chat.jsonl"));
  const char* const words[] = {
      "not ", "loop.first and ", "messages[-1]", "message", "content",   "'x' + ",    "user",   "system", "!=", "==",
      "-",    "| trim ",         "loop.last",    "[1:]",    "{{ 'y' }}", "eos_token", " + ' '", "1"};
  int recognized = 0, dropped = 0, compared = 0;
  while (recognized < 25) {
    const nlohmann::json& config = goldens[rng() % goldens.size()]["config"];
    std::string text = config["chat_template"];
    for (uint32_t count = 1 + rng() % 2; count > 0; --count) {
      const size_t at = rng() % text.size();
      if (rng() % 2 == 0) text.erase(at, 1 + rng() % 12);
      if (rng() % 3 != 0) text.insert(std::min(at, text.size()), words[rng() % std::size(words)]);
    }
    ChatTemplates templates;
    templates.standard = text;
    templates.bos_token = "<s>";
    templates.eos_token = "</s>";
    templates.special_tokens_json = R"({"bos_token": "<s>", "eos_token": "</s>"})";
    if (!IsValidUtf8(text) || !ChatFormat::Recognize(templates).ok()) continue;
    ++recognized;
    ChatRenderer checked(templates, {});
    ASSERT_TRUE(checked.Check().ok());
    if (checked.RenderedBy() == "jinja") ++dropped;
    JinjaRenderer jinja(nlohmann::json{{"default", text}}.dump(), templates.special_tokens_json, {});
    for (const Conversation& conversation :
         {Turns({{"user", "Why?", ""}}), Turns({{"system", "Obey. ", ""}, {"user", "x", ""}}),
          Turns({{"system", "T", ""}, {"user", "k", ""}, {"assistant", "l ", ""}, {"user", " m", ""}})}) {
      absl::StatusOr<std::string> theirs;
      absl::Notification done;
      jinja.Render(RenderRequest(conversation, "default", Noon()), nullptr, [&](absl::StatusOr<std::string> prompt) {
        theirs = std::move(prompt);
        done.Notify();
      });
      done.WaitForNotification();
      const auto ours = checked.RenderNow(conversation, Noon());
      if (absl::IsFailedPrecondition(theirs.status())) continue;  // No Jinja any more.
      ++compared;
      EXPECT_EQ(ours.value_or("refused"), theirs.value_or("refused")) << "seed " << kSeed << ": " << text;
    }
  }
  EXPECT_GE(dropped, 1);
  EXPECT_GE(compared, 40);
}

TEST(ChatRenderer, AKnownTemplateWithToolsGoesToJinja) {
  const auto renderer = OfTemplate(ReadText(absl::StrCat(C3PO_TESTDATA_DIR, "/chat/templates/qwen_2_5.jinja")));
  EXPECT_EQ(renderer->RenderedBy(), "ChatML");
  Conversation conversation = Turns({{"user", "Hi", ""}});
  EXPECT_FALSE(renderer->NeedsJinja(conversation));
  conversation.tools_json = {R"({"type": "function", "function": {"name": "f"}})"};
  EXPECT_TRUE(renderer->NeedsJinja(conversation));
  EXPECT_THAT(*renderer->RenderNow(conversation), HasSubstr(R"({"type": "function", "function": {"name": "f"}})"));
}

TEST(ChatRenderer, DevelopersAreTheSystemToATemplateThatNamesNone) {
  const auto jinja = OfTemplate("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}");
  EXPECT_EQ(*jinja->RenderNow(Turns({{"developer", "Obey.", ""}, {"user", "Hi", ""}})), "[system] Obey.[user] Hi");
  const auto naming = OfTemplate("{% for m in messages %}{{ 'D' if m.role == 'developer' else m.role }}{% endfor %}");
  EXPECT_EQ(*naming->RenderNow(Turns({{"developer", "Obey.", ""}, {"user", "Hi", ""}})), "Duser");
  const auto known = OfTemplate(ReadText(absl::StrCat(C3PO_TESTDATA_DIR, "/chat/templates/qwen_2_5.jinja")));
  const Conversation conversation = Turns({{"developer", "Obey.", ""}, {"user", "Hi", ""}});
  EXPECT_FALSE(known->NeedsJinja(conversation));
  EXPECT_EQ(*known->RenderNow(conversation), *known->RenderNow(Turns({{"system", "Obey.", ""}, {"user", "Hi", ""}})));
}

TEST(ChatRenderer, JsonReachesTheTemplateAsItWasWritten) {
  const auto renderer = OfTemplate("{{ tools | tojson }}{{ messages[0] | tojson }}{{ a }}|{{ documents }}");
  Conversation conversation =
      Turns({{"assistant", "", R"({ "z": 1.0, "content": null, "a": 10000000000000000000000 })"}});
  conversation.tools_json = {R"({"b": 1e2, "a": [true, null, "\u00e9</script>"]})"};
  conversation.template_kwargs_json = R"( {"a": "x"} )";
  EXPECT_EQ(*renderer->RenderNow(conversation),
            R"([{"b": 100.0, "a": [true, null, "é</script>"]}])"
            R"({"role": "assistant", "content": null, "z": 1.0, "a": 10000000000000000000000}x|None)");
}

TEST(ChatRenderer, WrongConversationsNameTheField) {
  const auto renderer = OfTemplate("{{ messages[0].content }}{{ tools }}");
  struct Wrong {
    Conversation conversation;
    const char* message;
  };
  Conversation tool = Turns({{"user", "a", ""}}), document = tool, kwargs = tool, deep = tool, zero = tool;
  tool.tools_json = {"{}", "[]"};
  document.documents_json = {R"({"a": NaN})"};
  kwargs.template_kwargs_json = R"({"messages": []})";
  zero.tools_json = {std::string("{}\0\xff", 4)};
  deep.tools_json = {absl::StrCat(R"({"a":)", std::string(100000, '['), std::string(100000, ']'), "}")};
  const Wrong wrongs[] = {{Turns({}), "chat.messages: is empty"},
                          {Turns({{"user", "a", ""}, {"tol", "a", ""}}), "chat.messages[1].role: \"tol\" is none of"},
                          {Turns({{"user", "\xff", ""}}), "chat.messages[0].content: is not valid UTF-8"},
                          {Turns({{"user", "a", "{"}}), "chat.messages[0].fields_json: is no JSON object"},
                          {Turns({{"user", "a", "{\"a\": \"\xff\"}"}}), "chat.messages[0].fields_json: is no JSON"},
                          {Turns({{"user", "a", R"({"role": "system"})"}}), "chat.messages[0].fields_json: role:"},
                          {Turns({{"user", "a", R"({"content": []})"}}), "chat.messages[0].fields_json: content:"},
                          {tool, "chat.tools_json[1]: is no JSON object"},
                          {document, "chat.documents_json[0]: is no JSON object"},
                          {kwargs, "chat.template_kwargs_json: messages: "},
                          {zero, "chat.tools_json[0]: is no JSON object: it has a zero byte"},
                          {deep, "chat.tools_json[0]: nests deeper"}};
  for (const auto& [conversation, message] : wrongs) {
    const auto prompt = renderer->RenderNow(conversation);
    EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument) << message;
    EXPECT_TRUE(absl::StartsWith(prompt.status().message(), message)) << prompt.status();
  }
}

TEST(ChatRenderer, ToolsThatTheTemplateWouldDropAreRefused) {
  const auto renderer = OfTemplate("{{ messages[0].content }}");
  Conversation conversation = Turns({{"user", "a", ""}});
  conversation.tools_json = {"{}"};
  EXPECT_THAT(Message(renderer->RenderNow(conversation)), HasSubstr("chat.tools_json: "));
  conversation.tools_json.clear();
  conversation.documents_json = {"{}"};
  EXPECT_THAT(Message(renderer->RenderNow(conversation)), HasSubstr("chat.documents_json: "));
}

TEST(ChatRenderer, ToolsAreForTheTemplateOfThatName) {
  ChatTemplates templates;
  templates.standard = "standard{{ tools }}";
  templates.tool_use = "with {{ tools | length }}";
  ChatRenderer renderer(templates, {});
  Conversation conversation = Turns({{"user", "a", ""}});
  EXPECT_EQ(*renderer.RenderNow(conversation), "standardNone");
  conversation.tools_json = {"{}", "{}"};
  EXPECT_EQ(*renderer.RenderNow(conversation), "with 2");
}

TEST(ChatRenderer, TheStartLearnsWhetherATemplateCanBeRendered) {
  EXPECT_TRUE(OfTemplate("{{ messages }}")->Check().ok());
  const auto malformed = OfTemplate("{{ messages }}\n{% if %}");
  EXPECT_TRUE(malformed->usable());
  const absl::Status status = malformed->Check();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("chat template is no Jinja: line 2: "));
  EXPECT_THAT(std::string(status.message()), HasSubstr("raw prompt"));
  EXPECT_FALSE(malformed->usable());
  EXPECT_EQ(malformed->RenderNow(Turns({{"user", "a", ""}})).status(), status);
}

TEST(ChatRenderer, WithoutPythonTheMessageSaysWhatToInstall) {
  for (const char* python : {"/nonexistent/python3", "/bin/true", "/etc/passwd"}) {
    JinjaRenderer::Options options;
    options.python = python;
    const auto renderer = OfTemplate("{{ messages }}", options);
    const absl::Status status = renderer->Check();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << python;
    EXPECT_THAT(std::string(status.message()), HasSubstr("python3-jinja2"));
    EXPECT_THAT(std::string(status.message()), HasSubstr(python));
    EXPECT_THAT(std::string(status.message()), HasSubstr("raw prompt"));
  }
  // A known format does without.
  JinjaRenderer::Options options;
  options.python = "/nonexistent/python3";
  const auto known = OfTemplate(ReadText(absl::StrCat(C3PO_TESTDATA_DIR, "/chat/templates/qwen_2_5.jinja")), options);
  EXPECT_TRUE(known->Check().ok());
  EXPECT_TRUE(known->RenderNow(Turns({{"user", "a", ""}})).ok());
}

}  // namespace
}  // namespace c3po
