#include "server/text/chat_templates.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

class ChatTemplatesTest : public ::testing::Test {
 protected:
  ChatTemplatesTest() : folder_(std::filesystem::path(testing::TempDir()) / absl::StrCat("c3po_templates_", getpid())) {
    std::filesystem::create_directories(folder_ / "additional_chat_templates");
  }
  ~ChatTemplatesTest() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name) << text; }
  std::string PathOf(const std::string& name) const { return (folder_ / name).string(); }
  absl::StatusOr<ChatTemplates> Read(const std::string& file = "") const {
    return ChatTemplates::Read(PathOf("tokenizer_config.json"), file);
  }

  const std::filesystem::path folder_;
};

TEST_F(ChatTemplatesTest, NamedTemplatesOfTheConfig) {
  Write("tokenizer_config.json",
        R"({"chat_template": [{"name": "rag", "template": "r"}, {"name": "tool_use", "template": "t"},
                              {"name": "default", "template": "d"}]})");
  const auto templates = Read();
  ASSERT_TRUE(templates.ok()) << templates.status();
  EXPECT_EQ(templates->For(/*tools=*/false), "d");
  EXPECT_EQ(templates->For(/*tools=*/true), "t");
  EXPECT_EQ(templates->origin, PathOf("tokenizer_config.json"));
}

TEST_F(ChatTemplatesTest, FilesBesideTheConfigGoFirst) {
  Write("tokenizer_config.json",
        R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})");
  Write("chat_template.jinja", "file");
  EXPECT_EQ(Read()->For(false), "file");
  EXPECT_EQ(Read()->For(true), "file") << "the config's templates are replaced altogether";
  Write("additional_chat_templates/tool_use.jinja", "tools");
  EXPECT_EQ(Read()->For(false), "file");
  EXPECT_EQ(Read()->For(true), "tools");
  EXPECT_EQ(Read()->origin, PathOf("chat_template.jinja"));
}

TEST_F(ChatTemplatesTest, AFileThatIsNamedGoesBeforeAll) {
  Write("tokenizer_config.json", R"({"chat_template": "d", "bos_token": "<s>"})");
  Write("chat_template.jinja", "file");
  Write("additional_chat_templates/tool_use.jinja", "tools");
  Write("mine.jinja", "mine");
  const auto templates = Read(PathOf("mine.jinja"));
  ASSERT_TRUE(templates.ok()) << templates.status();
  EXPECT_EQ(templates->For(false), "mine");
  EXPECT_EQ(templates->For(true), "mine");
  EXPECT_EQ(templates->bos_token, "<s>");
  EXPECT_EQ(Read(PathOf("none.jinja")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Read(PathOf("none.jinja")).status().message()), HasSubstr("none.jinja"));
}

TEST_F(ChatTemplatesTest, SpecialTokensAreThoseOfTheTokenizer) {
  Write(
      "tokenizer_config.json",
      R"({"chat_template": "d", "bos_token": null, "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": "<p>",
            "unk_token": "", "additional_special_tokens": ["<a>", {"content": "<b>"}], "model_max_length": 1})");
  const auto templates = Read();
  ASSERT_TRUE(templates.ok()) << templates.status();
  EXPECT_EQ(templates->special_tokens_json,
            R"({"additional_special_tokens":["<a>","<b>"],"eos_token":"</s>","pad_token":"<p>"})");
  EXPECT_EQ(templates->eos_token, "</s>");
  EXPECT_EQ(templates->bos_token, "");
}

TEST_F(ChatTemplatesTest, WhatIsMissingOrWrongIsNamed) {
  EXPECT_EQ(Read().status().code(), absl::StatusCode::kNotFound);
  Write("chat_template.jinja", "file");
  EXPECT_EQ(Read()->For(false), "file") << "a template alone is enough";
  Write("chat_template.jinja", "\xff");
  EXPECT_THAT(std::string(Read().status().message()), HasSubstr("chat_template.jinja: is not valid UTF-8"));
  std::filesystem::remove(folder_ / "chat_template.jinja");
  Write("tokenizer_config.json", "{}");
  EXPECT_EQ(Read().status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(Read().status().message()), HasSubstr("--chat-template"));
  Write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "r"}]})");
  EXPECT_EQ(Read().status().code(), absl::StatusCode::kFailedPrecondition);
  Write("tokenizer_config.json", R"({"chat_template": "d", "pad_token": 3})");
  EXPECT_THAT(std::string(Read().status().message()), HasSubstr("pad_token: is of type number"));
  Write("tokenizer_config.json", "{}");
  Write("empty.jinja", "");
  EXPECT_THAT(std::string(Read(PathOf("empty.jinja")).status().message()), HasSubstr("empty.jinja: is empty"));
}

}  // namespace
}  // namespace c3po
