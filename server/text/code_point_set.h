#ifndef C3PO_SERVER_TEXT_CODE_POINT_SET_H_
#define C3PO_SERVER_TEXT_CODE_POINT_SET_H_

#include <cstdint>
#include <utility>
#include <vector>

namespace c3po {

// Reads the numbers of unicode_tables.h, which are trusted.
class TableReader {
 public:
  explicit TableReader(const char* text) : at_(text) {}
  bool done() const { return *at_ == '\0'; }
  uint32_t Next();
  int32_t NextSigned();

 private:
  const char* at_;
};

// A set of characters: O(log runs) to look one up. Immutable and thread-safe.
class CodePointSet {
 public:
  // `table` is a set of unicode_tables.h.
  explicit CodePointSet(const char* table);

  bool Contains(char32_t c) const;
  // First and last character of each run, ascending.
  const std::vector<std::pair<char32_t, char32_t>>& runs() const { return runs_; }

 private:
  std::vector<std::pair<char32_t, char32_t>> runs_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_CODE_POINT_SET_H_
