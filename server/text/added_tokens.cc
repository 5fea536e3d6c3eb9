#include "server/text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/unicode.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

uint64_t EdgeKey(int node, char byte) { return static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte); }

// The character before byte `position` of valid UTF-8, position > 0.
char32_t CharacterBefore(absl::string_view text, size_t position, size_t* begin) {
  do {
    --position;
  } while ((static_cast<uint8_t>(text[position]) & 0xC0) == 0x80);
  *begin = position;
  size_t end = position;
  return NextCodePoint(text, &end);
}

bool StandsAlone(absl::string_view text, size_t begin, size_t end) {
  size_t unused = 0;
  if (begin > 0 && IsSingleWordNeighbor(CharacterBefore(text, begin, &unused))) return false;
  return end == text.size() || !IsSingleWordNeighbor(NextCodePoint(text, &end));
}

size_t SpaceBegin(absl::string_view text, size_t end) {
  for (size_t begin = end; begin > 0; end = begin) {
    if (!IsWhiteSpace(CharacterBefore(text, end, &begin))) break;
  }
  return end;
}

size_t SpaceEnd(absl::string_view text, size_t begin) {
  for (size_t end = begin; begin < text.size(); begin = end) {
    if (!IsWhiteSpace(NextCodePoint(text, &end))) break;
  }
  return begin;
}

absl::StatusOr<AddedToken> ReadToken(const JsonField& json) {
  AddedToken token;
  C3PO_RETURN_IF_ERROR(json.ExpectOnly({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
  C3PO_ASSIGN_OR_RETURN(const JsonField id, json.Member("id"));
  C3PO_ASSIGN_OR_RETURN(const int64_t number, id.AsInteger(0, kTokenIdLimit - 1));
  token.id = static_cast<int32_t>(number);
  C3PO_ASSIGN_OR_RETURN(token.content, json.StringMember("content"));
  if (token.content.empty()) return json.Error("content is empty");
  C3PO_ASSIGN_OR_RETURN(token.single_word, json.BoolMember("single_word"));
  C3PO_ASSIGN_OR_RETURN(token.lstrip, json.BoolMember("lstrip"));
  C3PO_ASSIGN_OR_RETURN(token.rstrip, json.BoolMember("rstrip"));
  C3PO_ASSIGN_OR_RETURN(token.normalized, json.BoolMember("normalized"));
  C3PO_ASSIGN_OR_RETURN(token.special, json.BoolMember("special"));
  return token;
}

}  // namespace

PatternTrie::PatternTrie() : values_(1, -1), goes_on_(1, false) { first_bytes_.fill(false); }

void PatternTrie::Insert(absl::string_view pattern, int value) {
  first_bytes_[static_cast<uint8_t>(pattern.front())] = true;
  int node = 0;
  for (const char byte : pattern) {
    const auto [edge, is_new] = edges_.try_emplace(EdgeKey(node, byte), static_cast<int>(values_.size()));
    goes_on_[node] = true;
    node = edge->second;
    if (!is_new) continue;
    values_.push_back(-1);
    goes_on_.push_back(false);
  }
  if (values_[node] < 0) values_[node] = value;
}

std::optional<PatternTrie::Match> PatternTrie::MatchAt(absl::string_view text, size_t begin, bool* reaches_end) const {
  std::optional<Match> longest;
  int node = 0;
  size_t end = begin;
  while (end < text.size()) {
    const auto edge = edges_.find(EdgeKey(node, text[end]));
    if (edge == edges_.end()) break;
    node = edge->second;
    ++end;
    if (values_[node] >= 0) longest = Match{begin, end, values_[node]};
  }
  *reaches_end = end == text.size() && goes_on_[node];
  return longest;
}

std::optional<PatternTrie::Match> PatternTrie::Find(absl::string_view text, size_t from) const {
  bool reaches_end = false;
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!first_bytes_[static_cast<uint8_t>(text[begin])]) continue;
    if (const std::optional<Match> match = MatchAt(text, begin, &reaches_end); match.has_value()) return match;
  }
  return std::nullopt;
}

std::optional<PatternTrie::Match> PatternTrie::FindSure(absl::string_view text, size_t from, size_t* open) const {
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!first_bytes_[static_cast<uint8_t>(text[begin])]) continue;
    bool reaches_end = false;
    const std::optional<Match> match = MatchAt(text, begin, &reaches_end);
    if (match.has_value() && !reaches_end) return match;
    if (!reaches_end) continue;
    *open = begin;
    return std::nullopt;
  }
  *open = text.size();
  return std::nullopt;
}

absl::StatusOr<AddedTokens> AddedTokens::FromJson(const std::optional<JsonField>& json, const Vocabulary& vocabulary,
                                                  const Normalizer& normalizer) {
  AddedTokens added;
  if (!json.has_value()) return added;
  absl::flat_hash_set<int32_t> ids;
  absl::flat_hash_set<std::string> contents;
  C3PO_RETURN_IF_ERROR(json->ForEachElement([&](size_t, const JsonField& element) -> absl::Status {
    C3PO_ASSIGN_OR_RETURN(AddedToken token, ReadToken(element));
    const std::optional<int32_t> model_id = vocabulary.Find(token.content);
    if (model_id.value_or(token.id) != token.id) {
      return element.Error(
          absl::StrCat("id is ", token.id, ", but model.vocab gives \"", token.content, "\" ", *model_id));
    }
    if (!model_id.has_value() && vocabulary.Piece(token.id).has_value()) {
      return element.Error(absl::StrCat("id ", token.id, " is that of \"", *vocabulary.Piece(token.id), "\""));
    }
    if (!ids.insert(token.id).second) return element.Error(absl::StrCat("id ", token.id, " is given twice"));
    if (!contents.insert(token.content).second) {
      return element.Error(absl::StrCat("content \"", token.content, "\" is given twice"));
    }
    token.pattern = token.content;
    if (token.normalized) C3PO_RETURN_IF_ERROR(normalizer.Normalize(&token.pattern));
    added.tokens_.push_back(std::move(token));
    return absl::OkStatus();
  }));
  for (int i = 0; i < static_cast<int>(added.tokens_.size()); ++i) {
    const AddedToken& token = added.tokens_[i];
    if (token.pattern.empty()) continue;
    (token.normalized ? added.normalized_ : added.raw_).Insert(token.pattern, i);
    added.strips_left_[token.normalized] |= token.lstrip;
    added.single_word_[token.normalized] |= token.single_word;
  }
  return added;
}

std::vector<AddedTokens::Part> AddedTokens::Split(absl::string_view text, bool normalized) const {
  const PatternTrie& trie = normalized ? normalized_ : raw_;
  std::vector<Part> parts;
  size_t done = 0;
  for (size_t from = 0;;) {
    const std::optional<PatternTrie::Match> match = trie.Find(text, from);
    if (!match.has_value()) break;
    from = match->end;
    const AddedToken& token = tokens_[match->value];
    if (token.single_word && !StandsAlone(text, match->begin, match->end)) continue;
    const size_t begin = token.lstrip ? std::max(SpaceBegin(text, match->begin), done) : match->begin;
    const size_t end = token.rstrip ? SpaceEnd(text, match->end) : match->end;
    if (done < begin) parts.push_back({done, begin, nullptr});
    parts.push_back({begin, end, &token});
    done = end;
  }
  if (done < text.size()) parts.push_back({done, text.size(), nullptr});
  return parts;
}

AddedTokens::OpenPart AddedTokens::SplitOpen(absl::string_view text, bool normalized) const {
  const PatternTrie& trie = normalized ? normalized_ : raw_;
  OpenPart part = {0, text.size(), 0, true};
  const auto ends_with_neighbor = [&](size_t end) {
    size_t unused = 0;
    return end > 0 && IsSingleWordNeighbor(CharacterBefore(text, end, &unused));
  };
  for (size_t from = 0;;) {
    const std::optional<PatternTrie::Match> match = trie.FindSure(text, from, &part.end);
    if (!match.has_value()) break;
    from = match->end;
    const AddedToken& token = tokens_[match->value];
    // What follows it decides whether it is one, or how far it reaches.
    const bool is_open =
        (token.single_word && match->end == text.size()) || (token.rstrip && SpaceEnd(text, match->end) == text.size());
    if (is_open) {
      part.end = match->begin;
      break;
    }
    part.restarts_from = match->end;  // A search begins behind a token that does not stand alone, too.
    if (token.single_word && !StandsAlone(text, match->begin, match->end)) {
      if (match->begin < part.begin) part.restarts_at_begin = false;
      continue;
    }
    part.begin = token.rstrip ? SpaceEnd(text, match->end) : match->end;
    part.restarts_at_begin = !single_word_[normalized] || !ends_with_neighbor(part.begin);
  }
  if (part.end < part.begin) part.restarts_at_begin = false;
  if (strips_left_[normalized]) part.end = SpaceBegin(text, part.end);
  part.end = std::max(part.end, part.begin);
  part.restarts_from = std::min(std::max(part.restarts_from, part.begin), part.end);
  return part;
}

}  // namespace c3po
