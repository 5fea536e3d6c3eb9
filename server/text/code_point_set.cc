#include "server/text/code_point_set.h"

#include <algorithm>

namespace c3po {

uint32_t TableReader::Next() {
  const auto digit = [](char c) -> uint32_t {
    if (c >= 'A' && c <= 'Z') return static_cast<uint32_t>(c - 'A');
    if (c >= 'a' && c <= 'z') return static_cast<uint32_t>(c - 'a') + 26;
    if (c >= '0' && c <= '9') return static_cast<uint32_t>(c - '0') + 52;
    return c == '+' ? 62 : 63;
  };
  uint32_t number = 0;
  for (int shift = 0; !done(); shift += 5) {
    const uint32_t next = digit(*at_++);
    number |= (next & 31) << shift;
    if (next < 32) break;
  }
  return number;
}

int32_t TableReader::NextSigned() {
  const uint32_t number = Next();
  return number % 2 == 0 ? static_cast<int32_t>(number / 2) : -static_cast<int32_t>(number / 2) - 1;
}

CodePointSet::CodePointSet(const char* table) {
  char32_t end = 0;
  for (TableReader reader(table); !reader.done();) {
    const char32_t first = end + reader.Next();
    const char32_t last = first + reader.Next();
    runs_.emplace_back(first, last);
    end = last + 1;
  }
}

bool CodePointSet::Contains(char32_t c) const {
  const auto after = std::upper_bound(runs_.begin(), runs_.end(), c,
                                      [](char32_t value, const auto& run) { return value < run.first; });
  return after != runs_.begin() && c <= std::prev(after)->second;
}

}  // namespace c3po
