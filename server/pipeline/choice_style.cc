#include "server/pipeline/choice_style.h"

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace c3po {

ChoiceStyle StyleOf(const Tokenizer& tokenizer, absl::Span<const int32_t> first_tokens) {
  size_t spaced = 0;
  for (const int32_t token : first_tokens) {
    const std::string bytes = tokenizer.TokenBytes(token);
    spaced += !bytes.empty() && absl::ascii_isspace(static_cast<unsigned char>(bytes.front())) ? 1 : 0;
  }
  if (spaced == 0 && !first_tokens.empty()) return ChoiceStyle::kBare;
  return spaced == first_tokens.size() && spaced > 0 ? ChoiceStyle::kSpaced : ChoiceStyle::kMixed;
}

std::vector<int32_t> FirstTokens(const NeighborCase& neighbor) {
  std::vector<int32_t> first;
  for (const std::vector<int32_t>& continuation : neighbor.continuations) first.push_back(continuation.front());
  return first;
}

void ChoiceStyles::Count(ChoiceStyle style) {
  spaced_ += style == ChoiceStyle::kSpaced ? 1 : 0;
  bare_ += style == ChoiceStyle::kBare ? 1 : 0;
}

bool ChoiceStyles::AreOtherThan(ChoiceStyle style) const {
  return (style == ChoiceStyle::kSpaced && bare_ > spaced_) || (style == ChoiceStyle::kBare && spaced_ > bare_);
}

std::string StyleWarning(absl::string_view what, ChoiceStyle style) {
  const bool bare = style == ChoiceStyle::kBare;
  return absl::StrCat(what, " begin", bare ? " without" : " with",
                      " white space, and those of the collection's references ", bare ? "with it" : "without",
                      ": the model reads them as other tokens, and the references hardly help");
}

std::string CompareStyles(const Tokenizer& tokenizer, absl::Span<const int32_t> first_tokens,
                          absl::Span<const NeighborCase> neighbors) {
  ChoiceStyles of_neighbors;
  for (const NeighborCase& neighbor : neighbors) of_neighbors.Count(StyleOf(tokenizer, FirstTokens(neighbor)));
  const ChoiceStyle style = StyleOf(tokenizer, first_tokens);
  return of_neighbors.AreOtherThan(style) ? StyleWarning("continuations", style) : "";
}

}  // namespace c3po
