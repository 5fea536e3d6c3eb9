#include "index/base/python_json.h"

#include "gtest/gtest.h"

namespace c3po {
namespace {

TEST(QuoteNonFinite, QuotesTheNumbersThatOnlyPythonWrites) {
  EXPECT_EQ(QuoteNonFinite(R"({"a": NaN, "b": [Infinity, -Infinity, -1], "c": null})"),
            R"({"a": "NaN", "b": ["Infinity", "-Infinity", -1], "c": null})");
  EXPECT_EQ(QuoteNonFinite(""), "");
  EXPECT_EQ(QuoteNonFinite("Na"), "Na");
}

TEST(QuoteNonFinite, LeavesStringsAsTheyAre) {
  const char* const kTexts[] = {R"({"NaN": "a NaN", "b": "\"NaN", "c": "\\"})", R"({"-Infinity": "\\\" Infinity"})",
                                R"("unfinished NaN)", R"("unfinished \)"};
  for (const char* text : kTexts) EXPECT_EQ(QuoteNonFinite(text), text);
  EXPECT_EQ(QuoteNonFinite(R"({"a": "\\", "b": NaN})"), R"({"a": "\\", "b": "NaN"})");
}

}  // namespace
}  // namespace c3po
