#ifndef C3PO_TESTS_INDEX_SEARCH_RANDOM_FILTER_H_
#define C3PO_TESTS_INDEX_SEARCH_RANDOM_FILTER_H_

#include <map>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "index/types/metadata_filter.h"

namespace c3po {

// Metadata and filters over the same few keys and values, so that every kind of condition holds for some references and
// not for others: texts, numbers in several spellings, and keys that most references do not have.
inline std::string RandomValue(std::mt19937& random) {
  static const char* const kValues[] = {"en", "de", "",    "1",  "1.0", "01", "2.5", "-3",
                                        "3",  "7",  "1e1", "10", "abc", "1 ", "nan", "0x2"};
  return kValues[random() % std::size(kValues)];
}

inline std::map<std::string, std::string> RandomMetadata(std::mt19937& random) {
  std::map<std::string, std::string> metadata;
  for (const char* key : {"language", "year", "source"}) {
    if (random() % 4 != 0) metadata[key] = RandomValue(random);
  }
  if (random() % 10 == 0) metadata["rare"] = absl::StrCat(random() % 50);
  return metadata;
}

inline MetadataFilter RandomFilter(std::mt19937& random, int depth = 3);

inline MetadataCondition RandomCondition(std::mt19937& random, int depth) {
  static const char* const kKeys[] = {"language", "year", "source", "rare", "nobody has it"};
  MetadataCondition condition;
  const size_t kind = random() % (depth > 1 ? 5 : 4);
  if (kind == 4) {
    condition.filter.push_back(RandomFilter(random, depth - 1));
    return condition;
  }
  condition.key = kKeys[random() % std::size(kKeys)];
  if (kind == 0) condition.equals = RandomValue(random);
  if (kind == 1) {
    for (size_t count = 1 + random() % 4; count > 0; --count) condition.in.push_back(RandomValue(random));
  }
  if (kind == 2) {
    MetadataRange& range = condition.range.emplace();
    const double low = static_cast<double>(random() % 9) - 4;
    const double high = low + static_cast<double>(random() % 8) - 1;
    const size_t ends = 1 + random() % 3;  // Of the two.
    if (ends & 1) (random() % 2 ? range.gt : range.gte) = low;
    if (ends & 2) (random() % 2 ? range.lt : range.lte) = high;
  }
  if (kind == 3) condition.exists = random() % 2 == 0;
  return condition;
}

// A valid one, of up to three conditions a list; some have none.
inline MetadataFilter RandomFilter(std::mt19937& random, int depth) {
  MetadataFilter filter;
  for (auto* list : {&filter.must, &filter.should, &filter.must_not}) {
    for (size_t count = random() % 3; count > 0; --count) list->push_back(RandomCondition(random, depth));
  }
  return filter;
}

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_SEARCH_RANDOM_FILTER_H_
