#include "server/text/utf8.h"

#include <gtest/gtest.h>

#include "server/text/byte_level.h"
#include "server/text/unicode.h"

namespace c3po {
namespace {

TEST(Utf8, EveryScalarValueRoundTrips) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string text;
    AppendCodePoint(c, &text);
    ASSERT_TRUE(IsValidUtf8(text)) << static_cast<uint32_t>(c);
    size_t position = 0;
    ASSERT_EQ(NextCodePoint(text, &position), c);
    ASSERT_EQ(position, text.size());
    for (size_t length = 1; length < text.size(); ++length) {
      const Utf8Step step = ScanUtf8(absl::string_view(text).substr(0, length), 0);
      ASSERT_EQ(step.kind, Utf8Step::Kind::kTruncated);
      ASSERT_EQ(step.length, length);
    }
  }
}

// The table of Unicode 3.9 for "U+FFFD Substitution of Maximal Subparts".
TEST(Utf8, BrokenBytesAreTakenAsMaximalSubparts) {
  const std::pair<std::string, std::vector<size_t>> cases[] = {
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", {1, 1, 1, 1, 1, 1, 1, 1}},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", {1, 1, 1, 1, 1, 1, 1, 1}},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", {1, 1, 1, 1, 1, 0, 1, 1}},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", {2, 1, 3, 2}}};
  for (const auto& [bytes, lengths] : cases) {
    size_t position = 0;
    for (const size_t length : lengths) {
      const Utf8Step step = ScanUtf8(bytes, position);
      EXPECT_EQ(step.kind, length == 0 ? Utf8Step::Kind::kCharacter : Utf8Step::Kind::kInvalid) << position;
      EXPECT_EQ(step.length, length == 0 ? 1 : length) << position;
      position += step.length;
    }
    EXPECT_EQ(position, bytes.size() - 1);
  }
}

TEST(ByteLevelAlphabet, AllBytesRoundTrip) {
  std::string bytes;
  for (int byte = 0; byte < 256; ++byte) bytes.push_back(static_cast<char>(byte));
  const std::string alphabet = BytesToAlphabet(bytes);
  EXPECT_TRUE(IsValidUtf8(alphabet));
  EXPECT_EQ(AlphabetToBytes(alphabet), bytes);
  EXPECT_EQ(BytesToAlphabet(" \n"), "\xC4\xA0\xC4\x8A");
  EXPECT_EQ(AlphabetToBytes("\xE6\xB0\xB4"), "\xE6\xB0\xB4");  // Outside the alphabet: itself.
}

TEST(NormalizeUnicode, ComposesAndDecomposes) {
  const auto normalize = [](const char* text, NormalizationForm form) { return NormalizeUnicode(text, form); };
  EXPECT_EQ(normalize("e\xCC\x81", NormalizationForm::kNfc), "\xC3\xA9");
  EXPECT_EQ(normalize("\xC3\xA9", NormalizationForm::kNfd), "e\xCC\x81");
  // Marks below come before marks above, and equal classes keep their order.
  EXPECT_EQ(normalize("q\xCC\x87\xCC\xA3", NormalizationForm::kNfd), "q\xCC\xA3\xCC\x87");
  EXPECT_EQ(normalize("\xEF\xAC\x81", NormalizationForm::kNfkc), "fi");
  EXPECT_EQ(normalize("\xEF\xAC\x81", NormalizationForm::kNfc), "\xEF\xAC\x81");
  EXPECT_EQ(normalize("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB", NormalizationForm::kNfc), "\xED\x95\x9C");  // Hangul.
  EXPECT_EQ(normalize("\xE2\x84\xAB", NormalizationForm::kNfc), "\xC3\x85");  // The angstrom sign.
}

}  // namespace
}  // namespace c3po
