#ifndef C3PO_SERVER_TEXT_REGEX_H_
#define C3PO_SERVER_TEXT_REGEX_H_

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// A span of bytes [begin, end) of some text.
struct TextRange {
  size_t begin;
  size_t end;
};

// A pattern of a tokenizer.json. Those are written for Oniguruma (https://github.com/kkos/oniguruma, doc/RE, Ruby
// syntax); this class runs them with PCRE2 in Unicode mode, after rewriting what the two read differently: \s, \w, \d,
// \v, \uHHHH, [:punct:], [:space:], [:word:], [:digit:], and scripts such as \p{Han} (the property Script, not
// Script_Extensions). General categories and the scripts of unicode_tables.cc are those of Unicode 16, as in tokenizers
// 0.22 and 0.23; Debian 12's PCRE2 has Unicode 14.
// Immutable and thread-safe; cheap to copy.
class Regex {
 public:
  // InvalidArgument: a syntax error, or a construct whose meaning differs and is not rewritten, named in the message:
  // \h, \b, \R, \X, back-references, other [:names:], nested or intersected classes, {n,m}+, {n}?, {,n}, options other
  // than i, (?i) in mid-pattern, "ss" and the like where case is ignored, verbs, \W, \D and most \P{} in a class.
  static absl::StatusOr<Regex> Compile(absl::string_view pattern);
  // Matches `text` itself; an empty one between any two characters, as Compile("") does.
  static absl::StatusOr<Regex> Literal(absl::string_view text);

  // All matches from left to right, not overlapping; an empty match right after another one is passed over. `text` is
  // valid UTF-8. ResourceExhausted: the pattern backtracks beyond PCRE2's limits on this text.
  absl::StatusOr<std::vector<TextRange>> FindAll(absl::string_view text) const;

  // What is known of the matches in a text of which only the beginning is.
  struct SureMatches {
    std::vector<TextRange> matches;  // The first ones, whatever follows.
    size_t sure;                     // The next one does not begin before this place.
  };
  // The matches of FindAll(text + R) that are the same for every R. PCRE2 tells them by its hard partial matching
  // (pcre2partial(3), "for multi-segment matching"): an attempt that looks at the text's end, in whatever branch or
  // lookahead, gives neither a match nor a failure but PCRE2_ERROR_PARTIAL, with the place where it began. So attempts
  // before that place failed, or matched, without looking at what follows.
  absl::StatusOr<SureMatches> FindSure(absl::string_view text) const;

  // Whether the matches of FindAll behind a place that lies in no match are those of the text from there on alone. The
  // next match begins at the first place where an attempt succeeds, and an attempt looks ahead only; the exceptions are
  // patterns that look behind (lookbehind, ^, \A), and those that match the empty text, since an empty match counts
  // or not by what was found before it.
  bool restarts() const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code);

  std::shared_ptr<const Code> code_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_REGEX_H_
