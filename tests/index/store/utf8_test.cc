#include "index/base/utf8.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/escaping.h"

namespace c3po {
namespace {

TEST(Utf8, AcceptsEveryCodePointThatIsNoSurrogate) {
  for (uint32_t c = 0; c <= 0x10ffff; ++c) {
    std::string bytes;
    if (c < 0x80) {
      bytes = {static_cast<char>(c)};
    } else if (c < 0x800) {
      bytes = {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 63))};
    } else if (c < 0x10000) {
      bytes = {static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 63)),
               static_cast<char>(0x80 | (c & 63))};
    } else {
      bytes = {static_cast<char>(0xf0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 63)),
               static_cast<char>(0x80 | (c >> 6 & 63)), static_cast<char>(0x80 | (c & 63))};
    }
    ASSERT_EQ(IsValidUtf8(bytes), c < 0xd800 || c > 0xdfff) << std::hex << c;
    const bool cut_is_valid = IsValidUtf8(bytes.substr(0, bytes.size() - 1));
    ASSERT_EQ(cut_is_valid, bytes.size() == 1) << std::hex << c;
  }
}

TEST(Utf8, RefusesWhatIsNotWellFormed) {
  for (const std::string bytes :
       {"\x80", "\xff", "\xfe", "a\xc3", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xf0\x8f\xbf\xbf", "\xed\xa0\x80",
        "\xf4\x90\x80\x80", "\xf8\x88\x80\x80\x80", "\xc3(", "\xe2\x82(", "\xf0\x9f\x98("}) {
    EXPECT_FALSE(IsValidUtf8(bytes)) << absl::CHexEscape(bytes);
  }
  EXPECT_TRUE(IsValidUtf8(""));
  EXPECT_TRUE(IsValidUtf8(std::string("a\0b", 3)));
}

TEST(Utf8Prefix, NeverEndsInsideACharacter) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x99\x82z";  // 1, 2, 3, 4 and 1 bytes
  for (size_t bytes_max = 0; bytes_max <= text.size() + 2; ++bytes_max) {
    const absl::string_view prefix = Utf8Prefix(text, bytes_max);
    EXPECT_TRUE(IsValidUtf8(prefix)) << bytes_max;
    EXPECT_LE(prefix.size(), bytes_max);
    EXPECT_EQ(text.substr(0, prefix.size()), prefix);
    EXPECT_GT(prefix.size() + 4, std::min(bytes_max, text.size()));
  }
  EXPECT_EQ(Utf8Prefix(text, 6), text.substr(0, 6));
  EXPECT_EQ(Utf8Prefix(text, 9), text.substr(0, 6));
}

}  // namespace
}  // namespace c3po
