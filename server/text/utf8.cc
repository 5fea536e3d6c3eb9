#include "server/text/utf8.h"

#include <algorithm>
#include <cstdint>

namespace c3po {
namespace {

// How a lead byte constrains what follows: the number of continuation bytes and the range of the first of them.
struct LeadByte {
  int continuation_count;  // -1: no character starts with this byte.
  uint8_t second_min;
  uint8_t second_max;
};

LeadByte Classify(uint8_t lead) {
  if (lead < 0x80) return {0, 0, 0};
  if (lead < 0xC2) return {-1, 0, 0};
  if (lead < 0xE0) return {1, 0x80, 0xBF};
  if (lead == 0xE0) return {2, 0xA0, 0xBF};
  if (lead == 0xED) return {2, 0x80, 0x9F};
  if (lead < 0xF0) return {2, 0x80, 0xBF};
  if (lead == 0xF0) return {3, 0x90, 0xBF};
  if (lead < 0xF4) return {3, 0x80, 0xBF};
  if (lead == 0xF4) return {3, 0x80, 0x8F};
  return {-1, 0, 0};
}

}  // namespace

Utf8Step ScanUtf8(absl::string_view bytes, size_t position) {
  const LeadByte lead = Classify(static_cast<uint8_t>(bytes[position]));
  if (lead.continuation_count < 0) return {Utf8Step::Kind::kInvalid, 1};
  size_t length = 1;
  for (int i = 0; i < lead.continuation_count; ++i, ++length) {
    if (position + length == bytes.size()) return {Utf8Step::Kind::kTruncated, length};
    const uint8_t byte = static_cast<uint8_t>(bytes[position + length]);
    const uint8_t min = i == 0 ? lead.second_min : 0x80;
    const uint8_t max = i == 0 ? lead.second_max : 0xBF;
    if (byte < min || byte > max) return {Utf8Step::Kind::kInvalid, length};
  }
  return {Utf8Step::Kind::kCharacter, length};
}

bool IsAscii(absl::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char c) { return static_cast<uint8_t>(c) < 0x80; });
}

char32_t NextCodePoint(absl::string_view text, size_t* position) {
  const uint8_t lead = static_cast<uint8_t>(text[*position]);
  const size_t length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  char32_t code_point = length == 1 ? lead : lead & (0xFF >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    code_point = (code_point << 6) | (static_cast<uint8_t>(text[*position + i]) & 0x3F);
  }
  *position += length;
  return code_point;
}

void AppendCodePoint(char32_t c, std::string* text) {
  if (c < 0x80) {
    text->push_back(static_cast<char>(c));
    return;
  }
  const int continuation_count = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
  const uint8_t lead_mark = continuation_count == 1 ? 0xC0 : continuation_count == 2 ? 0xE0 : 0xF0;
  text->push_back(static_cast<char>(lead_mark | (c >> (6 * continuation_count))));
  for (int i = continuation_count - 1; i >= 0; --i) text->push_back(static_cast<char>(0x80 | ((c >> (6 * i)) & 0x3F)));
}

}  // namespace c3po
