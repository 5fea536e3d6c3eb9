#include "server/text/byte_pair_encoding.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "index/base/status_macros.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

uint64_t PairKey(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

uint64_t SeamKey(char32_t left, char32_t right) { return static_cast<uint64_t>(left) << 32 | right; }

// Of a piece, which is not empty.
char32_t LastCharacter(absl::string_view piece) {
  size_t begin = piece.size() - 1;
  while (begin > 0 && (static_cast<uint8_t>(piece[begin]) & 0xC0) == 0x80) --begin;
  return NextCodePoint(piece, &begin);
}

absl::Status CheckUnsupportedOptions(const JsonField& model) {
  C3PO_RETURN_IF_ERROR(
      model.ExpectOnly({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                        "byte_fallback", "ignore_merges", "vocab", "merges"}));
  if (const auto dropout = model.Find("dropout"); dropout.has_value()) {
    C3PO_ASSIGN_OR_RETURN(const double probability, dropout->AsNumber());
    if (probability != 0) return dropout->Error("merge dropout is not supported");
  }
  for (const char* option : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    C3PO_ASSIGN_OR_RETURN(const std::string affix, model.StringMember(option, ""));
    if (!affix.empty()) return model.Error(absl::StrCat(option, " is not supported"));
  }
  return absl::OkStatus();
}

// Both ways a merge is written: "left right", and ["left", "right"] for pieces that hold a space.
absl::StatusOr<std::pair<std::string, std::string>> ReadPair(const JsonField& merge) {
  if (merge.is_string()) {
    C3PO_ASSIGN_OR_RETURN(const std::string text, merge.AsString());
    std::vector<std::string> parts = absl::StrSplit(text, ' ');
    if (parts.size() != 2) return merge.Error(absl::StrCat("\"", text, "\" is not two pieces with a space between"));
    return std::make_pair(std::move(parts[0]), std::move(parts[1]));
  }
  std::vector<std::string> parts;
  C3PO_RETURN_IF_ERROR(merge.ForEachElement([&](size_t, const JsonField& part) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(std::string piece, part.AsString());
    parts.push_back(std::move(piece));
    return absl::OkStatus();
  }));
  if (parts.size() != 2) return merge.Error(absl::StrCat("has ", parts.size(), " pieces, expected 2"));
  return std::make_pair(std::move(parts[0]), std::move(parts[1]));
}

}  // namespace

BytePairEncoding::BytePairEncoding(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {
  for (int32_t id = 0; id < vocabulary_.size(); ++id) {
    const absl::string_view piece = vocabulary_.Piece(id).value_or("");
    if (piece.empty()) continue;
    size_t position = 0;
    const char32_t first = NextCodePoint(piece, &position);
    if (position == piece.size()) character_ids_.emplace(first, id);
  }
}

absl::StatusOr<std::unique_ptr<const TokenModel>> BytePairEncoding::FromJson(const JsonField& json) {
  C3PO_RETURN_IF_ERROR(CheckUnsupportedOptions(json));
  C3PO_ASSIGN_OR_RETURN(const JsonField vocab, json.Member("vocab"));
  C3PO_ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::FromJson(vocab));
  std::unique_ptr<BytePairEncoding> model(new BytePairEncoding(std::move(vocabulary)));
  C3PO_ASSIGN_OR_RETURN(const JsonField merges, json.Member("merges"));
  C3PO_RETURN_IF_ERROR(model->ReadMerges(merges));
  C3PO_ASSIGN_OR_RETURN(model->fuse_unknown_, json.BoolMember("fuse_unk", false));
  C3PO_ASSIGN_OR_RETURN(model->ignore_merges_, json.BoolMember("ignore_merges", false));
  if (const auto unknown = json.Find("unk_token"); unknown.has_value()) {
    C3PO_ASSIGN_OR_RETURN(const std::string piece, unknown->AsString());
    model->unknown_id_ = model->vocabulary_.Find(piece);
    if (!model->unknown_id_.has_value()) return unknown->Error(absl::StrCat("\"", piece, "\" is not in model.vocab"));
  }
  C3PO_ASSIGN_OR_RETURN(const bool byte_fallback, json.BoolMember("byte_fallback", false));
  for (int byte = 0; byte_fallback && byte < 256; ++byte) {
    model->byte_ids_[byte] = model->vocabulary_.Find(absl::StrFormat("<0x%02X>", byte));
  }
  return std::unique_ptr<const TokenModel>(std::move(model));
}

absl::Status BytePairEncoding::ReadMerges(const JsonField& merges) {
  int32_t rank = 0;
  return merges.ForEachElement([&](size_t, const JsonField& merge) -> absl::Status {
    if (merge.is_string() && absl::StartsWith(*merge.AsString(), "#version")) return absl::OkStatus();
    C3PO_ASSIGN_OR_RETURN(const auto pair, ReadPair(merge));
    const std::string joined = pair.first + pair.second;
    for (const std::string& piece : {pair.first, pair.second, joined}) {
      if (!vocabulary_.Find(piece).has_value()) {
        return merge.Error(absl::StrCat("piece \"", piece, "\" is not in model.vocab"));
      }
    }
    if (!pair.first.empty() && !pair.second.empty()) {
      size_t begin = 0;
      seams_.insert(SeamKey(LastCharacter(pair.first), NextCodePoint(pair.second, &begin)));
    }
    merges_[PairKey(*vocabulary_.Find(pair.first), *vocabulary_.Find(pair.second))] =
        Merge{rank++, *vocabulary_.Find(joined)};
    return absl::OkStatus();
  });
}

bool BytePairEncoding::NeverJoins(char32_t left, char32_t right) const {
  return !ignore_merges_ && character_ids_.contains(left) && character_ids_.contains(right) &&
         !seams_.contains(SeamKey(left, right));
}

const BytePairEncoding::Merge* BytePairEncoding::FindMerge(int32_t left, int32_t right) const {
  const auto found = merges_.find(PairKey(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BytePairEncoding::Tokenize(absl::string_view word, std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    if (const std::optional<int32_t> whole = vocabulary_.Find(word); whole.has_value()) {
      ids->push_back(*whole);
      return;
    }
  }
  Symbols symbols = Characters(word);
  JoinPairs(&symbols);
  for (const Symbol& symbol : symbols) {
    if (symbol.id >= 0) ids->push_back(symbol.id);
  }
}

// A character without a piece becomes its bytes' pieces when all of them exist, else the unknown piece, else nothing.
// An unknown piece is held until the next known character, so that fuse_unk can extend it; bytes in between go before
// it, as in the reference.
BytePairEncoding::Symbols BytePairEncoding::Characters(absl::string_view word) const {
  Symbols symbols;
  const auto add = [&](int32_t id) {
    const int index = static_cast<int>(symbols.size());
    if (index > 0) symbols.back().next = index;
    symbols.push_back({id, index - 1, -1});
  };
  bool unknown_held = false;
  for (size_t position = 0; position < word.size();) {
    const size_t begin = position;
    const auto known = character_ids_.find(NextCodePoint(word, &position));
    if (known != character_ids_.end()) {
      if (unknown_held) add(*unknown_id_);
      unknown_held = false;
      add(known->second);
      continue;
    }
    const absl::string_view bytes = word.substr(begin, position - begin);
    const auto byte_id = [&](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
    if (std::all_of(bytes.begin(), bytes.end(), [&](char byte) { return byte_id(byte).has_value(); })) {
      for (const char byte : bytes) add(*byte_id(byte));
    } else if (unknown_id_.has_value()) {
      if (unknown_held && !fuse_unknown_) add(*unknown_id_);
      unknown_held = true;
    }
  }
  if (unknown_held) add(*unknown_id_);
  return symbols;
}

void BytePairEncoding::JoinPairs(Symbols* symbols) const {
  struct Candidate {
    Merge merge;
    int left;
  };
  // A heap of candidates; one whose symbols changed meanwhile is found out when it is taken.
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.merge.rank != b.merge.rank ? a.merge.rank > b.merge.rank : a.left > b.left;
  };
  absl::InlinedVector<Candidate, 32> heap;
  const auto consider = [&](int left) {
    const int right = left < 0 ? -1 : (*symbols)[left].next;
    if (right < 0) return;
    const Merge* merge = FindMerge((*symbols)[left].id, (*symbols)[right].id);
    if (merge == nullptr) return;
    heap.push_back({*merge, left});
    std::push_heap(heap.begin(), heap.end(), later);
  };
  for (int i = 0; i < static_cast<int>(symbols->size()); ++i) consider(i);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate best = heap.back();
    heap.pop_back();
    Symbol& left = (*symbols)[best.left];
    if (left.id < 0 || left.next < 0) continue;
    Symbol& right = (*symbols)[left.next];
    const Merge* merge = FindMerge(left.id, right.id);
    if (merge == nullptr || merge->id != best.merge.id) continue;
    left.id = merge->id;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) (*symbols)[left.next].previous = best.left;
    consider(left.previous);
    consider(best.left);
  }
}

}  // namespace c3po
