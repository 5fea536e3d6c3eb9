#ifndef C3PO_SERVER_TEXT_BYTE_PAIR_ENCODING_H_
#define C3PO_SERVER_TEXT_BYTE_PAIR_ENCODING_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/container/inlined_vector.h"
#include "server/text/token_model.h"

namespace c3po {

// Byte-pair encoding (Sennrich et al. 2016, arXiv 1508.07909): a word starts as its characters; the adjacent pair whose
// merge stands earliest in the list is joined, the leftmost first among equals, until no pair has a merge.
// O(n log n) in the word's length, without a cache. Immutable and thread-safe.
class BytePairEncoding final : public TokenModel {
 public:
  // From {"type": "BPE", "vocab", "merges", ...}; merges are "a b" or ["a", "b"]. Options implemented: unk_token,
  // fuse_unk, byte_fallback, ignore_merges. InvalidArgument: dropout, continuing_subword_prefix or end_of_word_suffix
  // in use, a merge or unk_token that names an unknown piece.
  static absl::StatusOr<std::unique_ptr<const TokenModel>> FromJson(const JsonField& model);

  void Tokenize(absl::string_view word, std::vector<int32_t>* ids) const override;
  // True of two characters that have pieces and at which no merge joins, which is to say that the left one ends the
  // left piece of no merge whose right piece begins with the right one. For the pieces on both sides of a place always
  // spell the text there, so that none ever reaches over it. What is joined on one side does not depend on the other
  // side, in which joins only come in between. Nothing else is kept from one side to the other: an unknown piece that
  // is held is added before the next character with a piece. With ignore_merges a word may be a piece: always false.
  bool NeverJoins(char32_t left, char32_t right) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }

 private:
  struct Merge {
    int32_t rank;  // Place in the list of merges; smaller goes first.
    int32_t id;    // Of the joined piece.
  };
  // The word's symbols form a doubly linked list inside a vector; -1 ends it.
  struct Symbol {
    int32_t id;  // -1: joined to the symbol on its left.
    int previous;
    int next;
  };
  using Symbols = absl::InlinedVector<Symbol, 32>;

  explicit BytePairEncoding(Vocabulary vocabulary);
  absl::Status ReadMerges(const JsonField& merges);
  Symbols Characters(absl::string_view word) const;
  void JoinPairs(Symbols* symbols) const;
  const Merge* FindMerge(int32_t left, int32_t right) const;

  Vocabulary vocabulary_;
  absl::flat_hash_map<uint64_t, Merge> merges_;           // By left id << 32 | right id.
  absl::flat_hash_set<uint64_t> seams_;                   // Of merges: last character left << 32 | first one right.
  absl::flat_hash_map<char32_t, int32_t> character_ids_;  // Pieces of one character.
  std::array<std::optional<int32_t>, 256> byte_ids_;      // Of "<0x00>" to "<0xFF>", when byte_fallback is set.
  std::optional<int32_t> unknown_id_;
  bool fuse_unknown_ = false;
  bool ignore_merges_ = false;  // A word that is a piece as a whole is that piece.
};

}  // namespace c3po

#endif  // C3PO_SERVER_TEXT_BYTE_PAIR_ENCODING_H_
