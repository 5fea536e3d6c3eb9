#include "server/text/delimiter.h"

#include <algorithm>

namespace c3po {

std::vector<Stretch> CutAtMatches(const std::vector<TextRange>& matches, size_t text_size) {
  std::vector<Stretch> stretches;
  stretches.reserve(matches.size() * 2 + 1);
  size_t end = 0;
  for (const TextRange& match : matches) {
    if (match.begin != end) stretches.push_back({{end, match.begin}, false});
    stretches.push_back({match, true});
    end = match.end;
  }
  if (end != text_size) stretches.push_back({{end, text_size}, false});
  return stretches;
}

std::vector<TextRange> ApplyBehavior(std::vector<Stretch> stretches, DelimiterBehavior behavior) {
  std::vector<TextRange> parts;
  bool previous_match = false;
  switch (behavior) {
    case DelimiterBehavior::kRemoved:
      for (const Stretch& stretch : stretches) {
        if (!stretch.is_match) parts.push_back(stretch.range);
      }
      break;
    case DelimiterBehavior::kIsolated:
      for (const Stretch& stretch : stretches) parts.push_back(stretch.range);
      break;
    case DelimiterBehavior::kContiguous:
    case DelimiterBehavior::kMergedWithPrevious:
      for (const Stretch& stretch : stretches) {
        const bool joins = behavior == DelimiterBehavior::kContiguous ? stretch.is_match == previous_match
                                                                      : stretch.is_match && !previous_match;
        if (joins && !parts.empty()) {
          parts.back().end = stretch.range.end;
        } else {
          parts.push_back(stretch.range);
        }
        previous_match = stretch.is_match;
      }
      break;
    case DelimiterBehavior::kMergedWithNext:
      for (auto stretch = stretches.rbegin(); stretch != stretches.rend(); ++stretch) {
        if (stretch->is_match && !previous_match && !parts.empty()) {
          parts.back().begin = stretch->range.begin;
        } else {
          parts.push_back(stretch->range);
        }
        previous_match = stretch->is_match;
      }
      std::reverse(parts.begin(), parts.end());
      break;
  }
  return parts;
}

}  // namespace c3po
