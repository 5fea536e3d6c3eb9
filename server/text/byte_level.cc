#include "server/text/byte_level.h"

#include <array>
#include <cstdint>

#include "server/text/utf8.h"

namespace c3po {
namespace {

constexpr char32_t kAlphabetEnd = 0x144;

struct Alphabet {
  std::array<char32_t, 256> character_of_byte;
  std::array<int, kAlphabetEnd> byte_of_character;  // -1: not in the alphabet.
};

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet{};
  for (int& byte : alphabet.byte_of_character) byte = -1;
  char32_t next_substitute = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte != 0xAD);
    const char32_t character = printable ? static_cast<char32_t>(byte) : next_substitute++;
    alphabet.character_of_byte[byte] = character;
    alphabet.byte_of_character[character] = byte;
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::string BytesToAlphabet(absl::string_view bytes) {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const char byte : bytes) AppendCodePoint(kAlphabet.character_of_byte[static_cast<uint8_t>(byte)], &text);
  return text;
}

std::string AlphabetToBytes(absl::string_view piece) {
  std::string bytes;
  for (size_t position = 0; position < piece.size();) {
    const char32_t character = NextCodePoint(piece, &position);
    const int byte = character < kAlphabetEnd ? kAlphabet.byte_of_character[character] : -1;
    if (byte < 0) return std::string(piece);
    bytes.push_back(static_cast<char>(byte));
  }
  return bytes;
}

}  // namespace c3po
