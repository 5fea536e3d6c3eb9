#include "client/request_text.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <string>

#include "c3po/v1/generation.pb.h"
#include "c3po/v1/reference.pb.h"

namespace c3po {
namespace {

// The definition itself: decode a code point, then require that its shortest form is what stood there.
bool IsUtf8ByDecoding(const std::string& text) {
  for (size_t i = 0; i < text.size();) {
    const unsigned char lead = text[i];
    const int length = lead < 0x80 ? 1 : (lead >> 5) == 6 ? 2 : (lead >> 4) == 14 ? 3 : (lead >> 3) == 30 ? 4 : 0;
    if (length == 0 || i + length > text.size()) return false;
    uint32_t code = length == 1 ? lead : lead & ((1 << (7 - length)) - 1);
    for (int j = 1; j < length; ++j) {
      const unsigned char next = text[i + j];
      if (next >> 6 != 2) return false;
      code = code << 6 | (next & 0x3f);
    }
    const uint32_t smallest[] = {0, 0, 0x80, 0x800, 0x10000};
    if (code < smallest[length] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return false;
    i += length;
  }
  return true;
}

TEST(IsUtf8, AgreesWithDecodingOnEveryLeadAndSecondByteAndTheirTails) {
  for (int first = 0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      for (const char* tail : {"", "\x80", "\x80\xbf", "a", "\xbf\x41"}) {
        const std::string text = std::string{static_cast<char>(first), static_cast<char>(second)} + tail;
        ASSERT_EQ(IsUtf8(text), IsUtf8ByDecoding(text)) << first << " " << second << " + " << strlen(tail);
      }
    }
  }
}

TEST(CheckText, NamesTheFieldByItsPath) {
  v1::GenerateRequest request;
  request.mutable_chat()->add_messages()->set_content("fine");
  request.mutable_chat()->add_messages()->set_content("\xc0\xaf");
  EXPECT_EQ(CheckText(request).ToString(), "INVALID_ARGUMENT: chat.messages[1].content: not valid UTF-8");
  request.mutable_chat()->mutable_messages(1)->set_content("gr\xc3\xbc\xc3\x9f");
  EXPECT_TRUE(CheckText(request).ok());
}

TEST(CheckText, LooksIntoRepeatedStringsAndMaps) {
  v1::ReferenceSample sample;
  sample.add_choices("a");
  sample.add_choices("\xff");
  EXPECT_EQ(CheckText(sample).message(), "choices[1]: not valid UTF-8");
  sample.clear_choices();
  (*sample.mutable_metadata())["key"] = "\xff";
  EXPECT_EQ(CheckText(sample).message(), "metadata[0].value: not valid UTF-8");
}

}  // namespace
}  // namespace c3po
