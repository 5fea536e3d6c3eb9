#ifndef C3PO_SERVER_TEXT_DELIMITER_H_
#define C3PO_SERVER_TEXT_DELIMITER_H_

#include <cstddef>
#include <vector>

#include "server/text/regex.h"

namespace c3po {

// How text is cut at delimiters. Pure functions.

// What becomes of the stretches that a delimiter pattern matches.
enum class DelimiterBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// A piece of text cut at matches.
struct Stretch {
  TextRange range;
  bool is_match;
};

// The matches and what lies between them, in order: they cover the text without gaps, and none is empty but a match.
std::vector<Stretch> CutAtMatches(const std::vector<TextRange>& matches, size_t text_size);

// The parts that the stretches are joined to. Whether there is a cut between two stretches depends on these two alone.
std::vector<TextRange> ApplyBehavior(std::vector<Stretch> stretches, DelimiterBehavior behavior);

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_DELIMITER_H_
