#include "server/text/unicode.h"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "server/text/code_point_set.h"
#include "server/text/unicode_tables.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

using Characters = std::u32string;
using Mapping = absl::flat_hash_map<char32_t, Characters>;

bool Between(char32_t c, char32_t first, char32_t last) { return first <= c && c <= last; }

Mapping ReadMapping(const char* table) {
  Mapping mapping;
  char32_t c = 0;
  for (TableReader reader(table); !reader.done();) {
    c += reader.Next();
    Characters& target = mapping[c];
    target.resize(reader.Next() + 1);
    char32_t previous = c;
    for (char32_t& each : target)
      each = previous = static_cast<char32_t>(static_cast<int32_t>(previous) + reader.NextSigned());
  }
  return mapping;
}

// Hangul syllables are composed by arithmetic (The Unicode Standard, section 3.12).
constexpr char32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTrails = 0x11A7;
constexpr char32_t kLeadCount = 19, kVowelCount = 21, kTrailCount = 28;  // One trail stands for none.
constexpr char32_t kSyllableCount = kLeadCount * kVowelCount * kTrailCount;

class Normalization {
 public:
  static const Normalization& Shared() {
    static const Normalization* const kShared = new Normalization();
    return *kShared;
  }

  void Decompose(char32_t c, bool compatibility, Characters* out) const {
    if (c < 0xA0) {
      out->push_back(c);
    } else if (Between(c, kSyllables, kSyllables + kSyllableCount - 1)) {
      const char32_t index = c - kSyllables, trail = index % kTrailCount;
      out->push_back(kLeads + index / (kVowelCount * kTrailCount));
      out->push_back(kVowels + index / kTrailCount % kVowelCount);
      if (trail > 0) out->push_back(kTrails + trail);
    } else if (const auto compatible = compatibility_.find(c); compatibility && compatible != compatibility_.end()) {
      out->append(compatible->second);
    } else if (const auto canonical = canonical_.find(c); canonical != canonical_.end()) {
      out->append(canonical->second);
    } else {
      out->push_back(c);
    }
  }

  uint32_t CombiningClass(char32_t c) const {
    if (c < 0x300) return 0;
    const auto found = classes_.find(c);
    return found == classes_.end() ? 0 : found->second;
  }

  // Puts each run of combining marks in canonical order.
  void Reorder(Characters* text) const {
    for (auto run = text->begin(); run != text->end();) {
      if (CombiningClass(*run) == 0) {
        ++run;
        continue;
      }
      const auto end = std::find_if(run, text->end(), [&](char32_t c) { return CombiningClass(c) == 0; });
      std::stable_sort(run, end, [&](char32_t a, char32_t b) { return CombiningClass(a) < CombiningClass(b); });
      run = end;
    }
  }

  // Neither Reorder nor Compose brings `c` together with what stands before it.
  bool StandsApart(char32_t c) const {
    const bool joins = Between(c, kVowels, kVowels + kVowelCount - 1) || Between(c, kTrails, kTrails + kTrailCount - 1);
    return CombiningClass(c) == 0 && !joins && !seconds_.contains(c);
  }

  // Joins each starter with what follows it, unless something of the same or a greater class stands between.
  void Compose(Characters* text) const {
    size_t size = 0;
    std::optional<size_t> starter;
    uint32_t previous_class = 0;
    for (const char32_t c : *text) {
      const uint32_t combining_class = CombiningClass(c);
      const bool adjacent = starter.has_value() && *starter + 1 == size;
      const bool reaches = adjacent || (starter.has_value() && previous_class != 0 && previous_class < combining_class);
      if (reaches) {
        if (const std::optional<char32_t> joined = Join((*text)[*starter], c); joined.has_value()) {
          (*text)[*starter] = *joined;
          continue;
        }
      }
      if (combining_class == 0) starter = size;
      previous_class = combining_class;
      (*text)[size++] = c;
    }
    text->resize(size);
  }

 private:
  Normalization()
      : canonical_(ReadMapping(unicode_tables::kCanonicalDecomposition)),
        compatibility_(ReadMapping(unicode_tables::kCompatibilityDecomposition)) {
    char32_t end = 0;
    for (TableReader reader(unicode_tables::kCombiningClass); !reader.done();) {
      const char32_t first = end + reader.Next(), last = first + reader.Next();
      const uint32_t combining_class = reader.Next();
      for (char32_t c = first; c <= last; ++c) classes_[c] = combining_class;
      end = last + 1;
    }
    ReadComposites();
  }

  // A composite is its decomposition's last character and the composite of those before it.
  void ReadComposites() {
    std::vector<std::pair<Characters, char32_t>> composites;
    const CodePointSet primary(unicode_tables::kPrimaryComposite);
    for (const auto& [c, decomposition] : canonical_) {
      if (primary.Contains(c)) composites.emplace_back(decomposition, c);
    }
    std::sort(composites.begin(), composites.end(),
              [](const auto& a, const auto& b) { return a.first.size() < b.first.size(); });
    absl::flat_hash_map<Characters, char32_t> by_decomposition;
    for (const auto& [decomposition, c] : composites) {
      const Characters head = decomposition.substr(0, decomposition.size() - 1);
      const char32_t first = head.size() == 1 ? head[0] : by_decomposition.at(head);
      by_decomposition[decomposition] = c;
      pairs_[Key(first, decomposition.back())] = c;
      seconds_.insert(decomposition.back());
    }
  }

  static uint64_t Key(char32_t first, char32_t second) { return static_cast<uint64_t>(first) << 32 | second; }

  std::optional<char32_t> Join(char32_t first, char32_t second) const {
    if (Between(first, kLeads, kLeads + kLeadCount - 1) && Between(second, kVowels, kVowels + kVowelCount - 1)) {
      return kSyllables + ((first - kLeads) * kVowelCount + (second - kVowels)) * kTrailCount;
    }
    if (Between(first, kSyllables, kSyllables + kSyllableCount - 1) && (first - kSyllables) % kTrailCount == 0 &&
        Between(second, kTrails + 1, kTrails + kTrailCount - 1)) {
      return first + (second - kTrails);
    }
    const auto found = pairs_.find(Key(first, second));
    return found == pairs_.end() ? std::nullopt : std::optional<char32_t>(found->second);
  }

  Mapping canonical_;
  Mapping compatibility_;
  absl::flat_hash_map<char32_t, uint32_t> classes_;
  absl::flat_hash_map<uint64_t, char32_t> pairs_;
  absl::flat_hash_set<char32_t> seconds_;  // Of pairs_.
};

}  // namespace

bool IsWhiteSpace(char32_t c) {
  return Between(c, 0x9, 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || Between(c, 0x2000, 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsNumeric(char32_t c) {
  static const CodePointSet* const kSet = new CodePointSet(unicode_tables::kNumeric);
  return kSet->Contains(c);
}

bool IsPunctuation(char32_t c) {
  static const CodePointSet* const kSet = new CodePointSet(unicode_tables::kPunctuation);
  return kSet->Contains(c);
}

bool IsCleanedAway(char32_t c) {
  static const CodePointSet* const kSet = new CodePointSet(unicode_tables::kCleanedAway);
  return kSet->Contains(c);
}

bool IsNonspacingMark(char32_t c) {
  static const CodePointSet* const kSet = new CodePointSet(unicode_tables::kNonspacingMark);
  return c >= 0x300 && kSet->Contains(c);
}

bool IsWordCharacter(char32_t c) {
  static const CodePointSet* const kSet = new CodePointSet(unicode_tables::kWordCharacter);
  return kSet->Contains(c);
}

bool IsSingleWordNeighbor(char32_t c) {
  static const CodePointSet* const kSet = new CodePointSet(unicode_tables::kSingleWordNeighbor);
  return kSet->Contains(c);
}

void AppendLowercase(char32_t c, std::string* text) {
  static const Mapping* const kLower = new Mapping(ReadMapping(unicode_tables::kLowercase));
  if (const auto found = kLower->find(c); found != kLower->end()) {
    for (const char32_t each : found->second) AppendCodePoint(each, text);
  } else {
    AppendCodePoint(c, text);
  }
}

bool StartsNormalization(char32_t c, NormalizationForm form) {
  if (c < 0x80) return true;
  const bool compatibility = form == NormalizationForm::kNfkc || form == NormalizationForm::kNfkd;
  Characters decomposition;
  Normalization::Shared().Decompose(c, compatibility, &decomposition);
  return Normalization::Shared().StandsApart(decomposition.front());
}

std::string NormalizeUnicode(absl::string_view text, NormalizationForm form) {
  if (IsAscii(text)) return std::string(text);
  const bool compatibility = form == NormalizationForm::kNfkc || form == NormalizationForm::kNfkd;
  const bool compose = form == NormalizationForm::kNfc || form == NormalizationForm::kNfkc;
  const Normalization& normalization = Normalization::Shared();
  Characters characters;
  characters.reserve(text.size());
  for (size_t position = 0; position < text.size();) {
    normalization.Decompose(NextCodePoint(text, &position), compatibility, &characters);
  }
  normalization.Reorder(&characters);
  if (compose) normalization.Compose(&characters);
  std::string normalized;
  normalized.reserve(text.size());
  for (const char32_t c : characters) AppendCodePoint(c, &normalized);
  return normalized;
}

}  // namespace c3po
