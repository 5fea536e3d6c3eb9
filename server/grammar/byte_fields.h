#ifndef C3PO_SERVER_GRAMMAR_BYTE_FIELDS_H_
#define C3PO_SERVER_GRAMMAR_BYTE_FIELDS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace c3po {

// Numbers and texts one after the other: a number is 4 bytes, most significant first; a text its length and its bytes.

inline void AppendNumber(uint32_t number, std::string& out) {
  for (const int shift : {24, 16, 8, 0}) out.push_back(static_cast<char>(number >> shift));
}

inline void AppendText(absl::string_view text, std::string& out) {
  AppendNumber(static_cast<uint32_t>(text.size()), out);
  out.append(text.data(), text.size());
}

// Takes them from the front of `bytes`; nothing: there are too few bytes.
inline std::optional<uint32_t> TakeNumber(absl::string_view& bytes) {
  constexpr size_t kBytes = 4;
  if (bytes.size() < kBytes) return std::nullopt;
  uint32_t number = 0;
  for (size_t i = 0; i < kBytes; ++i) number = number << 8 | static_cast<unsigned char>(bytes[i]);
  bytes.remove_prefix(kBytes);
  return number;
}

inline std::optional<std::string> TakeText(absl::string_view& bytes) {
  const std::optional<uint32_t> length = TakeNumber(bytes);
  if (!length || bytes.size() < *length) return std::nullopt;
  std::string text(bytes.substr(0, *length));
  bytes.remove_prefix(*length);
  return text;
}

}  // namespace c3po

#endif  // C3PO_SERVER_GRAMMAR_BYTE_FIELDS_H_
