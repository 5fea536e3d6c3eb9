#include "server/text/regex.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

// The matches, each in brackets.
std::string Matches(absl::string_view pattern, const std::string& text) {
  const auto regex = Regex::Compile(pattern);
  if (!regex.ok()) return std::string(regex.status().message());
  const auto found = regex->FindAll(text);
  if (!found.ok()) return std::string(found.status().message());
  std::string list;
  for (const TextRange& match : *found)
    absl::StrAppend(&list, "[", text.substr(match.begin, match.end - match.begin), "]");
  return list;
}

TEST(Regex, MatchesUnicodeClasses) {
  EXPECT_EQ(Matches("\\p{L}+", "ab \xC3\xA9\xE6\xB0\xB4 1"), "[ab][\xC3\xA9\xE6\xB0\xB4]");
  EXPECT_EQ(Matches("\\p{N}", "1\xD9\xA3x"), "[1][\xD9\xA3]");
  EXPECT_EQ(Matches("(?i:'s|'t)", "it'S don't"), "['S]['t]");
}

TEST(Regex, SpaceAndWordAreThoseOfOniguruma) {
  EXPECT_EQ(Matches("\\s", "a\xE1\xA0\x8E\xC2\x85z"), "[\xC2\x85]");  // U+180E is no space, U+0085 is.
  EXPECT_EQ(Matches("[^\\s]+", "a\xE1\xA0\x8E z"), "[a\xE1\xA0\x8E][z]");
  EXPECT_EQ(Matches("\\S+", "a\xE1\xA0\x8E z"), "[a\xE1\xA0\x8E][z]");
  EXPECT_EQ(Matches("\\w+", "e\xCC\x81_1-x"), "[e\xCC\x81_1][x]");  // A mark belongs to its word.
  EXPECT_EQ(Matches("[\\w']+", "it's 5"), "[it's][5]");
  EXPECT_EQ(Matches("\\W", "a-b"), "[-]");
}

TEST(Regex, ScriptsAreExactAndPunctuationHoldsSymbols) {
  EXPECT_EQ(Matches("\\p{Han}+", "\xE6\xB0\xB4\xE3\x80\x81"), "[\xE6\xB0\xB4]");  // U+3001 is common to scripts.
  EXPECT_EQ(Matches("\\p{^Hiragana}", "\xE3\x81\x82"), "");
  EXPECT_EQ(Matches("[[:punct:]]+", "a+!\xC2\xA2 "), "[+!\xC2\xA2]");
  EXPECT_EQ(Matches("[[:space:][:digit:]]+", "a 1\xE1\xA0\x8E"), "[ 1]");
  EXPECT_EQ(Matches("\\v\\u0041", "\vA\nA"), "[\vA]");
  EXPECT_EQ(Matches("[\\S]+", "a\xE1\xA0\x8E b"), "[a\xE1\xA0\x8E][b]");
  EXPECT_EQ(Matches("(?i)k|x", "\xE2\x84\xAAX"), "[\xE2\x84\xAA][X]");
  EXPECT_EQ(Matches("}{1,2}?", "}}"), "[}][}]");
  EXPECT_EQ(Regex::Compile("\\p{Nonsense}").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Regex, LineAnchorsMatchAtEveryLine) { EXPECT_EQ(Matches("^a", "a\na"), "[a][a]"); }

TEST(Regex, SpaceBeforeALinesEndIsFoundInLinearTime) {
  EXPECT_EQ(Matches("\\s+$", "a  \n\n b \n\tc "), "[  \n][ ][ ]");
  EXPECT_EQ(Matches("\\s+$", std::string(1000000, ' ') + "1"), "");
}

TEST(Regex, EmptyMatchesRightAfterAMatchArePassedOver) {
  EXPECT_EQ(Matches("a*", "aab"), "[aa][]");
  EXPECT_EQ(Matches("x*", "\xE6\xB0\xB4"), "[][]");
  EXPECT_EQ(Matches("x*", ""), "");
}

TEST(Regex, ConstructsThatDifferAreRefusedByName) {
  for (const char* construct :
       {"\\h",          "\\bx",     "a\\B",          "\\R",        "\\X",     "\\K",      "\\G",
        "[\\W]",        "[a[b]]",   "[a&&b]",        "a{1,2}+",    "a{2}?",   "a{,2}",    "(?m:.)",
        "(?x: a)",      "a(?i)b|c", "(?i:stop)",     "(?<name>a)", "(*UTF)a", "[[:alpha", "[[:alpha:]]",
        "[[:^digit:]]", "\\pL",     "\\p{Is Space}", "\\Q",        "\\1",     "\\u12"}) {
    const auto regex = Regex::Compile(construct);
    EXPECT_EQ(regex.status().code(), absl::StatusCode::kInvalidArgument) << construct;
    EXPECT_THAT(std::string(regex.status().message()), testing::HasSubstr("not supported")) << construct;
  }
  EXPECT_EQ(Matches("\\p{L}+[]a][[:digit:]]", "xy]1"), "[xy]1]");
  EXPECT_EQ(Regex::Compile("(a").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Regex::Compile("\\C").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Regex, LiteralsMatchThemselves) {
  const auto literal = Regex::Literal(".*");
  ASSERT_TRUE(literal.ok());
  const auto found = literal->FindAll("a.*b.*");
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->size(), 2u);
  EXPECT_EQ((*found)[0].begin, 1u);
  EXPECT_EQ((*found)[1].end, 6u);
  EXPECT_EQ(Regex::Literal("")->FindAll("ab")->size(), 3u);  // Between any two characters, as in the library.
}

TEST(Regex, EndlessBacktrackingIsAnError) {
  const auto regex = Regex::Compile("(a+)+$");
  ASSERT_TRUE(regex.ok()) << regex.status();
  EXPECT_EQ(regex->FindAll(std::string(40, 'a') + "b").status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(Regex, LongMatchesNeedNoStack) { EXPECT_EQ(Matches("(?:ab|c)+", "c" + std::string(100000, 'c')).size(), 100003u); }

}  // namespace
}  // namespace c3po
