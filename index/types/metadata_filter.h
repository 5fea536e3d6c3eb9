#ifndef C3PO_INDEX_TYPES_METADATA_FILTER_H_
#define C3PO_INDEX_TYPES_METADATA_FILTER_H_

#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Bounds of one filter, those of the filters within it included. A condition costs a search one visit of each reference
// that it holds for, so that the worst filter of a collection of n costs kFilterConditionsMax * n of them.
inline constexpr size_t kFilterConditionsMax = 64;
inline constexpr size_t kFilterDepthMax = 8;          // Filters within each other; one without any has depth 1.
inline constexpr size_t kFilterValuesMax = 4096;      // Of all lists `in`.
inline constexpr size_t kFilterBytesMax = 64 * 1024;  // Keys and values together.

// Numbers between ends, each of which may be open or absent.
struct MetadataRange {
  std::optional<double> gt, gte, lt, lte;

  bool Holds(double number) const;
  friend bool operator==(const MetadataRange& a, const MetadataRange& b) = default;
};

struct MetadataCondition;

// Which references count, by their metadata, with the meaning of Qdrant's filters: those for which every condition of
// `must` holds, none of `must_not`, and of `should`, where it has any, at least one.
struct MetadataFilter {
  std::vector<MetadataCondition> must, should, must_not;

  bool empty() const;  // It has no conditions, and every reference matches.
};
bool operator==(const MetadataFilter& a, const MetadataFilter& b);

// Exactly one of the fields after `key` is set. A key that a reference does not have fulfills `exists` false alone.
struct MetadataCondition {
  std::string key;                          // Empty where `filter` is set, and only there.
  std::optional<std::string> equals = {};   // The value is this text.
  std::vector<std::string> in = {};         // The value is one of these texts.
  std::optional<MetadataRange> range = {};  // The value is a number (DecimalNumber) in this range.
  std::optional<bool> exists = {};          // Whether the reference has the key, whatever its value.
  std::vector<MetadataFilter> filter = {};  // None, or one that has to match.
};
bool operator==(const MetadataCondition& a, const MetadataCondition& b);

// The functions below are pure and thread-safe.

// The number that a text is: a decimal with optional sign, fraction and exponent ("-3", "+0.50", ".5", "2e3") and
// nothing else, spaces included. Nothing: it is no such text, or a number that float64 does not hold ("1e999").
std::optional<double> DecimalNumber(absl::string_view text);

// OK, or InvalidArgument for the first thing wrong, which begins with the path below `field`:
// "filter.must[2].range: sets none of gt, gte, lt and lte".
absl::Status ValidateFilter(absl::string_view field, const MetadataFilter& filter);

// Whether a reference with this metadata matches, by asking each condition in turn: what indexes are held to.
bool Matches(const MetadataFilter& filter, const std::map<std::string, std::string>& metadata);

// The filter as a text, the same for the same filter and for no other; empty for one without conditions.
std::string FilterText(const MetadataFilter& filter);

}  // namespace c3po

#endif  // C3PO_INDEX_TYPES_METADATA_FILTER_H_
