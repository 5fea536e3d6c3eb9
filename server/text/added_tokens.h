#ifndef C3PO_SERVER_TEXT_ADDED_TOKENS_H_
#define C3PO_SERVER_TEXT_ADDED_TOKENS_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/text/json_field.h"
#include "server/text/normalizer.h"
#include "server/text/vocabulary.h"

namespace c3po {

// A token that text is searched for before any model sees it, such as <|endoftext|>.
struct AddedToken {
  int32_t id;
  std::string content;
  std::string pattern;  // What is searched for: the content, normalized when `normalized` is set.
  bool single_word;     // Matches only between characters that are no word characters.
  bool lstrip;          // White space before it belongs to it,
  bool rstrip;          // and after it.
  bool normalized;      // Searched for in normalized text, else in the text as given.
  bool special;
};

// Finds the longest of a set of patterns, leftmost first, by a trie over bytes. Immutable once built; thread-safe.
class PatternTrie {
 public:
  PatternTrie();
  // Later duplicates of a pattern are ignored. `pattern` is not empty.
  void Insert(absl::string_view pattern, int value);
  struct Match {
    size_t begin;
    size_t end;
    int value;
  };
  // The first match at or after `from`.
  std::optional<Match> Find(absl::string_view text, size_t from) const;
  // The same in text + R, for every R. nullopt: none, and the first that there may be begins at *open or after it.
  std::optional<Match> FindSure(absl::string_view text, size_t from, size_t* open) const;

 private:
  // The longest pattern at `begin`. *reaches_end: text after this one may make it another.
  std::optional<Match> MatchAt(absl::string_view text, size_t begin, bool* reaches_end) const;

  std::array<bool, 256> first_bytes_;
  absl::flat_hash_map<uint64_t, int> edges_;  // (node << 8 | byte) to node; node 0 is the root.
  std::vector<int> values_;                   // By node; -1: no pattern ends here.
  std::vector<bool> goes_on_;                 // By node: it has edges.
};

// The field `added_tokens`. Immutable and thread-safe.
class AddedTokens {
 public:
  // `added_tokens` is nullopt when the field is missing. InvalidArgument: a malformed field, empty content, an id that
  // contradicts the vocabulary or another added token.
  static absl::StatusOr<AddedTokens> FromJson(const std::optional<JsonField>& added_tokens,
                                              const Vocabulary& vocabulary, const Normalizer& normalizer);

  // Either plain text [begin, end), or an added token found there.
  struct Part {
    size_t begin;
    size_t end;
    const AddedToken* token;  // Null: plain text.
  };
  // Cuts `text` at the added tokens whose `normalized` flag is as asked.
  std::vector<Part> Split(absl::string_view text, bool normalized) const;

  // The last part of Split(text + R) that is plain, as far as it is the same for every R: it begins at `begin`, behind
  // the last token that is sure, and [begin, end) belongs to it. White space at the end that a token with lstrip might
  // take is none of it.
  struct OpenPart {
    size_t begin;
    size_t end;
    // From here to `end` Split restarts (open_text.h): no pattern begins there, whatever precedes it.
    size_t restarts_from;
    bool restarts_at_begin;  // Whatever `end` is.
  };
  OpenPart SplitOpen(absl::string_view text, bool normalized) const;

  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  std::vector<AddedToken> tokens_;
  PatternTrie raw_;  // Values are indices into tokens_.
  PatternTrie normalized_;
  std::array<bool, 2> strips_left_ = {false, false};  // By `normalized`: a token has lstrip,
  std::array<bool, 2> single_word_ = {false, false};  // or single_word.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_ADDED_TOKENS_H_
