#include "server/config/toml_settings.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

namespace c3po {
namespace {

TomlValue ValueOf(const std::string& text) {
  const auto settings = ParseTomlSettings("key = " + text);
  EXPECT_TRUE(settings.ok() && settings->size() == 1) << text << ": " << settings.status();
  return settings.ok() && settings->size() == 1 ? settings->front().value : TomlValue(false);
}

std::string ErrorOf(const std::string& text) {
  const auto settings = ParseTomlSettings(text);
  return settings.ok() ? "" : std::string(settings.status().message());
}

TEST(TomlSettings, ValuesAreThoseOfTheSpecification) {
  // Right values: toml.io/en/v1.0.0, sections String, Integer, Float and Boolean.
  const std::vector<std::pair<std::string, TomlValue>> cases = {
      {"true", true},
      {"false # off", false},
      {"42", int64_t{42}},
      {"+99", int64_t{99}},
      {"-0", int64_t{0}},
      {"1_000", int64_t{1000}},
      {"0xDEAD_beef", int64_t{0xdeadbeef}},
      {"0o755", int64_t{0755}},
      {"0b1101", int64_t{13}},
      {"-9223372036854775808", INT64_MIN},
      {"3.5", 3.5},
      {"-2e-2", -0.02},
      {"6.626E-3", 0.006626},
      {"224_617.445_991", 224617.445991},
      {R"("a # b, c")", std::string("a # b, c")},
      {R"("tab\t quote\" back\\ \u00e9 \U0001F600")", std::string("tab\t quote\" back\\ \xc3\xa9 \xf0\x9f\x98\x80")},
      {R"('C:\new "x"')", std::string(R"(C:\new "x")")},
      {R"("")", std::string()},
      {"''", std::string()}};
  for (const auto& [text, value] : cases) EXPECT_EQ(ValueOf(text), value) << text;
  EXPECT_TRUE(std::isinf(std::get<double>(ValueOf("-inf"))));
  EXPECT_TRUE(std::isnan(std::get<double>(ValueOf("nan"))));
}

TEST(TomlSettings, LinesKeysAndCommentsAreTakenAsTheyStand) {
  const auto settings = ParseTomlSettings("\xef\xbb\xbf# first\r\n\r\n  a-b = 1\r\n\"c d\"='x'\n\t# last");
  ASSERT_TRUE(settings.ok()) << settings.status();
  ASSERT_EQ(settings->size(), 2u);
  EXPECT_EQ((*settings)[0].key, "a-b");
  EXPECT_EQ((*settings)[0].line, 3);
  EXPECT_EQ((*settings)[1].key, "c d");
  EXPECT_EQ((*settings)[1].line, 4);
}

TEST(TomlSettings, WhatIsNotASettingIsRefusedByLineAndName) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"a = 1\nlisten = \"0.0.0.0:1", "line 2: listen: the string has no end"},
      {"listen = 'x", "line 1: listen: the string has no end"},
      {"listen = \"x\\\"", "line 1: listen: the string has no end"},
      {"listen = 127.0.0.1:1", "a text stands in quotes: listen = \"127.0.0.1:1\""},
      {"model = /a b", "/a is no number"},
      {"[server]\na = 1", "line 1: a table"},
      {"[[server]]", "line 1: a table"},
      {"server.listen = 1", "line 1: a dotted key"},
      {"a = [1, 2]", "a: an array"},
      {"a = {b = 1}", "a: an inline table"},
      {"a = \"\"\"x\"\"\"", "a: a multi-line string"},
      {"a = 1979-05-27", "a: 1979-05-27 is no number"},
      {"a = 1\nb = 2\na = 3", "line 3: a is set again, first on line 1"},
      {"insecure", "insecure: \"=\" and a value are missing"},
      {"a =", "a: the value is missing"},
      {"a = # nothing", "a: the value is missing"},
      {"a = 1 2", "a: \"2\" stands behind the value"},
      {"a = \"x\"y", "a: \"y\" stands behind the value"},
      {"= 1", "is not KEY = VALUE"},
      {"; a comment of INI", "is not KEY = VALUE"},
      {"a = \"\\q\"", "a: \"\\q\" is no escape sequence"},
      {"a = \"\\ud800\"", "a: \"\\ud800\" is no escape sequence"},
      {"a = 01", "a: 01 is no number"},
      {"a = 1__0", "a: 1__0 is no number"},
      {"a = 1.", "a: 1. is no number"},
      {"a = .5", "a: .5 is no number"},
      {"a = True", "a: True is no number and no truth value"},
      {"a = 9223372036854775808", "is no number"},
      {"a = \"\xff\"", "the file is not UTF-8"}};
  for (const auto& [text, message] : cases) {
    EXPECT_NE(ErrorOf(text).find(message), std::string::npos) << text << ": " << ErrorOf(text);
  }
}

TEST(TomlSettings, AQuotedTextReadsBackEqual) {
  for (const std::string text : {"", "a", "a\"b\\c", "\t\n\x01\x7f", "\xc3\xa9 # 'x'"}) {
    EXPECT_EQ(ValueOf(TomlQuoted(text)), TomlValue(text)) << text;
  }
}

}  // namespace
}  // namespace c3po
