#include "server/text/chat_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/time/civil_time.h"
#include "server/text/utf8.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<ChatFormat> FromConfig(const nlohmann::json& config) {
  const std::string path = WriteTemporary("tokenizer_config.json", config.dump());
  auto format = ChatFormat::FromTokenizerConfig(path);
  unlink(path.c_str());
  return format;
}

// A ChatML template with SmolLM2's default system message.
constexpr char kSmolTemplate[] =
    R"({% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %})"
    R"({{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }})"
    R"({% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %})"
    R"({% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %})";

// ChatML without a default system message, spelled in other ways.
constexpr char kPlainTemplate[] =
    "{%- for message in messages %}\n{{- \"<|im_start|>\" + message.role + \"\\n\" + message.content + "
    "\"<|im_end|>\\n\" }}"
    "\n{%- endfor %}\n{%- if add_generation_prompt %}{{- \"<|im_start|>assistant\\n\" }}{%- endif %}";

constexpr char kOlmoeTemplate[] =
    R"({{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + )"
    R"(message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }})"
    R"({% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n' + message['content'] + )"
    R"(eos_token + '\n' }}{% else %}{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}{% endif %})"
    R"({% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %})";

const nlohmann::json kOlmoeConfig = {{"chat_template", kOlmoeTemplate},
                                     {"bos_token", "<|endoftext|>"},
                                     {"eos_token", {{"content", "<|endoftext|>"}, {"special", true}}}};

TEST(ChatFormat, ChatMlAddsTheTemplatesDefaultSystemMessage) {
  const auto format = FromConfig({{"chat_template", kSmolTemplate}});
  ASSERT_TRUE(format.ok()) << format.status();
  EXPECT_EQ(*format->Render({{"user", "Hi"}}),
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatFormat, ASystemTurnReplacesTheDefault) {
  const auto format = FromConfig({{"chat_template", kSmolTemplate}});
  ASSERT_TRUE(format.ok()) << format.status();
  EXPECT_EQ(*format->Render({{"system", "Be brief."}, {"user", "Hi"}, {"assistant", "Yes?"}, {"user", "2+2"}}),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\n2+2<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatFormat, ChatMlWithoutADefaultAddsNothing) {
  for (const nlohmann::json& config : {nlohmann::json{{"chat_template", kPlainTemplate}},
                                       nlohmann::json{{"chat_template",
                                                       {{{"name", "tool_use"}, {"template", "?"}},
                                                        {{"name", "default"}, {"template", kPlainTemplate}}}}}}) {
    const auto format = FromConfig(config);
    ASSERT_TRUE(format.ok()) << format.status();
    EXPECT_EQ(*format->Render({{"user", "Hi"}}), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
  }
}

TEST(ChatFormat, OlmoeStartsWithBosAndClosesAssistantTurns) {
  const auto format = FromConfig(kOlmoeConfig);
  ASSERT_TRUE(format.ok()) << format.status();
  EXPECT_EQ(*format->Render({{"user", "Hi"}}), "<|endoftext|><|user|>\nHi\n<|assistant|>\n");
  EXPECT_EQ(
      *format->Render({{"system", "S"}, {"user", "Hi"}, {"assistant", "Yes?"}, {"user", "2+2"}}),
      "<|endoftext|><|system|>\nS\n<|user|>\nHi\n<|assistant|>\nYes?<|endoftext|>\n<|user|>\n2+2\n<|assistant|>\n");
}

// Templates of the families' instruct models and the prompts that Jinja renders from them.
TEST(ChatFormat, RendersWhatJinjaRenders) {
  const std::vector<nlohmann::json> lines = ReadJsonLines(GoldenPath("chat.jsonl"));
  ASSERT_GE(lines.size(), 14u);
  const absl::Time day = absl::FromCivil(absl::CivilSecond(2026, 2, 3, 12, 0, 0), absl::LocalTimeZone());
  int refused = 0;
  for (const nlohmann::json& line : lines) {
    const auto format = FromConfig(line["config"]);
    ASSERT_TRUE(format.ok()) << line["name"] << ": " << format.status();
    for (const nlohmann::json& expected : line["prompts"]) {
      std::vector<ChatTurn> turns;
      for (const nlohmann::json& turn : expected[0]) turns.push_back({turn[0], turn[1]});
      const auto prompt = format->Render(turns, day);
      if (expected[1].is_null()) {
        ++refused;
        EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument) << line["name"] << " " << expected;
        EXPECT_THAT(std::string(prompt.status().message()), HasSubstr("out of turn")) << line["name"];
      } else {
        ASSERT_TRUE(prompt.ok()) << line["name"] << ": " << prompt.status();
        EXPECT_EQ(*prompt, expected[1]) << line["name"] << " " << expected[0];
      }
    }
  }
  EXPECT_GT(refused, 5);
}

TEST(ChatFormat, ATemplateFileBesideTheConfigGoesFirst) {
  const std::string folder = absl::StrCat(testing::TempDir(), "/c3po_chat_", getpid());
  std::filesystem::create_directory(folder);
  std::ofstream(folder + "/tokenizer_config.json") << nlohmann::json{{"chat_template", kOlmoeTemplate}}.dump();
  std::ofstream(folder + "/chat_template.jinja") << kPlainTemplate;
  const auto format = ChatFormat::FromTokenizerConfig(folder + "/tokenizer_config.json");
  std::filesystem::remove_all(folder);
  ASSERT_TRUE(format.ok()) << format.status();
  EXPECT_EQ(*format->Render({{"user", "Hi"}}), "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
}

TEST(ChatFormat, BadTurnsAreNamed) {
  const auto format = FromConfig(kOlmoeConfig);
  ASSERT_TRUE(format.ok()) << format.status();
  const absl::Status role = format->Render({{"user", "a"}, {"assistant", "b"}, {"tol", "c"}}).status();
  EXPECT_EQ(role.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(role.message()), HasSubstr("chat.messages[2].role: \"tol\""));
  const absl::Status none = format->Render({}).status();
  EXPECT_EQ(none.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(none.message()), HasSubstr("chat.messages"));
}

TEST(ChatFormat, UnknownTemplatesAdviseARawPrompt) {
  const char* templates[] = {
      // A condition on a variable that a request may set.
      R"({% for m in messages %}{% if loud %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %})"
      R"({% endfor %}{{ '<|im_start|>assistant\n' }})",
      "", "{{ messages[0]['content'] }}",
      // Another format with the same words: turns are closed by the eos token.
      R"({% for message in messages %}{{ '<|user|>\n' + message['content'] + eos_token }}{% endfor %})",
      // A known one that does more to the content, writes more, or puts it in another variable.
      R"({% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %})"
      R"({{ '<|im_start|>assistant\n' }})",
      R"({% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %})"
      R"({{ '<|im_start|>assistant\n' }}{{ today }})",
      R"({% for m in messages %}{% set x = 1 %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }})"
      R"({% endfor %}{{ '<|im_start|>assistant\n' }})",
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n", "{{ 'x", "{# x", "{% endif %}",
      "{% if x %}", "{% include 'x' %}", "{% %}", "{{", "{%", "{", "{% else %}", "{% for %}{% endfor %}",
      R"({{ bos_token + '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }})"};
  for (const char* chat_template : templates) {
    const absl::Status status = FromConfig({{"chat_template", chat_template}}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << chat_template;
    EXPECT_THAT(std::string(status.message()), HasSubstr("raw prompt")) << chat_template;
  }
  EXPECT_EQ(FromConfig(nlohmann::json::object()).status().code(), absl::StatusCode::kFailedPrecondition);
}

// Whatever is done to a template, it is recognized or refused.
TEST(ChatFormat, DamagedTemplatesNeverCrash) {
  constexpr uint32_t kSeed = 5;
  std::mt19937 rng(kSeed);
  int recognized = 0;
  int refused = 0;
  const std::vector<nlohmann::json> lines = ReadJsonLines(GoldenPath("chat.jsonl"));
  for (int trial = 0; trial < 3000; ++trial) {
    nlohmann::json config = lines[rng() % lines.size()]["config"];
    std::string source = config["chat_template"];
    for (uint32_t count = 1 + rng() % 3; count > 0; --count) {
      const size_t at = rng() % source.size();
      if (rng() % 3 == 0) {
        source.erase(at, 1 + rng() % 20);
      } else if (rng() % 2 == 0) {
        source.insert(at, source.substr(rng() % source.size(), rng() % 30));
      } else {
        source[at] = "{}%#-+'\"\\()[].=|! \nnotaif"[rng() % 26];
      }
      if (source.empty()) source = "{";
    }
    while (!IsValidUtf8(source)) source.pop_back();
    config["chat_template"] = source;
    const auto format = FromConfig(config);
    if (format.ok()) {
      ++recognized;
      EXPECT_TRUE(format->Render({{"user", "Hi"}}).ok());
    } else {
      ++refused;
      EXPECT_EQ(format.status().code(), absl::StatusCode::kFailedPrecondition) << format.status();
    }
  }
  EXPECT_GT(recognized, 100) << "seed " << kSeed;
  EXPECT_GT(refused, 1000) << "seed " << kSeed;
}

TEST(ChatFormat, BadConfigsAreNamed) {
  EXPECT_EQ(ChatFormat::FromTokenizerConfig("/nonexistent/tokenizer_config.json").status().code(),
            absl::StatusCode::kNotFound);
  const absl::Status type = FromConfig({{"chat_template", 3}}).status();
  EXPECT_EQ(type.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(type.message()), HasSubstr("tokenizer_config.json: chat_template: is of type number"));
  EXPECT_EQ(FromConfig(nlohmann::json::array()).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace c3po
