#ifndef C3PO_SERVER_PIPELINE_CHOICE_STYLE_H_
#define C3PO_SERVER_PIPELINE_CHOICE_STYLE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "server/text/tokenizer.h"
#include "server/types/neighborhood_objective.h"

namespace c3po {

// How continuations begin, as the model reads them: with a token that opens with white space (" positive", a word of its
// own) or without ("positive", glued to the prompt's end). Loss and likelihood of one form say little of the other, so a
// collection keeps to one, and so do the questions that are asked over it. The choices of a classification without their
// leading space took a calibrated profile from 96 % to 45 %.
enum class ChoiceStyle { kMixed, kSpaced, kBare };

// Of the first token of each continuation; kMixed: they differ, or there are none.
ChoiceStyle StyleOf(const Tokenizer& tokenizer, absl::Span<const int32_t> first_tokens);

// Of a reference's continuations.
std::vector<int32_t> FirstTokens(const NeighborCase& neighbor);

// What most references of a collection do. A value of one thread.
class ChoiceStyles {
 public:
  void Count(ChoiceStyle style);
  // Whether most of those counted are of the other style; never for kMixed.
  bool AreOtherThan(ChoiceStyle style) const;

 private:
  int64_t spaced_ = 0, bare_ = 0;
};

// "continuations begin without white space, and those of the references with it: ...". `what` names the continuations.
std::string StyleWarning(absl::string_view what, ChoiceStyle style);

// The warning about continuations that begin with `first_tokens` where most of the neighbors' begin otherwise; empty where
// they do not, or where there are none.
std::string CompareStyles(const Tokenizer& tokenizer, absl::Span<const int32_t> first_tokens,
                          absl::Span<const NeighborCase> neighbors);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_CHOICE_STYLE_H_
