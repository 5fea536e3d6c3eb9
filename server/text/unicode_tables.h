#ifndef C3PO_SERVER_TEXT_UNICODE_TABLES_H_
#define C3PO_SERVER_TEXT_UNICODE_TABLES_H_

namespace c3po::unicode_tables {

// Tables of all characters, written by make_unicode_tables.py. Numbers are written in base 32, lowest digit first, as
// A to Z, a to f for the last digit of a number, and g to z, 0 to 9, +, / for the others (VLQ in base 64). A signed
// number n is 2n, or -2n - 1 where it is negative. By format:
//   set      characters: for each run, the gap since the run before it, and its length - 1
//   mapping  for each character, ascending: its distance from the one before it, the length of what it becomes - 1, and
//            the signed distances of these characters, the first from the character itself, others from the one before
//   classes  for each run: gap, length - 1, class
extern const char kNumeric[];                     // set
extern const char kPunctuation[];                 // set
extern const char kCleanedAway[];                 // set
extern const char kNonspacingMark[];              // set
extern const char kWordCharacter[];               // set
extern const char kSingleWordNeighbor[];          // set
extern const char kLowercase[];                   // mapping
extern const char kCanonicalDecomposition[];      // mapping; full
extern const char kCompatibilityDecomposition[];  // mapping; full
extern const char kPrimaryComposite[];            // set
extern const char kCombiningClass[];              // classes; characters in none have class 0

struct RegexProperty {
  const char* name;        // Without underscores, in lower case: "lu", "han".
  bool is_whole;           // `characters` are the whole property, else what PCRE2's own tables lack of it.
  const char* characters;  // set
};
extern const RegexProperty kRegexProperties[];  // Ends with a null name. Other properties are PCRE2's.

}  // namespace c3po::unicode_tables

#endif  // C3PO_SERVER_TEXT_UNICODE_TABLES_H_
