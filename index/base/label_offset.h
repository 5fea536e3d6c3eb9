#ifndef C3PO_INDEX_BASE_LABEL_OFFSET_H_
#define C3PO_INDEX_BASE_LABEL_OFFSET_H_

#include <cstddef>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace c3po {

// The bias of a model among fixed labels, and what takes it out. A model that leans to a label scores it higher on
// every text. Adding a number per label to the scores removes that, without the model. All functions are pure and
// thread-safe; the same arguments give the same figures.

// Scores of the same labels on several texts.
struct LabelScores {
  size_t labels = 0;           // at least 2
  std::vector<double> scores;  // row-major [texts, labels]: log-likelihoods in nats, as sums or per byte or token
  std::vector<int> gold;       // [texts]: the right label, in [0, labels)

  size_t texts() const { return gold.size(); }
  absl::Span<const double> row(size_t text) const { return absl::MakeConstSpan(scores).subspan(text * labels, labels); }
};

// The choice is the label c with the largest scale * s_c + offsets[c].
struct LabelOffset {
  double scale = 1;             // at least 0; 0: the scores tell nothing, and the largest offset always wins
  std::vector<double> offsets;  // [labels], in nats of the scaled scores; their sum is 0
};

// Fitted with labels: one scale and one number per label, so two free numbers for two labels. The fit is multinomial
// logistic regression with one slope for all labels (Platt, Advances in Large Margin Classifiers, 1999, for two):
//   minimize  sum_i -log softmax(a s_i + b)[gold_i] + (rho / 2) ((a r)^2 + sum_c b_c^2)   over a >= 0 and b,
// with rho = kLabelOffsetRidge and r the root mean square of the scores around their text's mean. The penalty keeps the
// solution finite where labels separate, and where a label has no text. It is weak: one hundredth of one text. A scale
// below 0 would turn the model's order around, which is no offset; the bound is then active, and a = 0.
// InvalidArgument: no texts, fewer than two labels, sizes that do not fit, a gold label out of range, or a score that
// is not finite.
absl::StatusOr<LabelOffset> FitLabelOffset(const LabelScores& scores);
inline constexpr double kLabelOffsetRidge = 0.01;

// Without labels, from the scores of a batch of texts (batch calibration; Zhou et al., arXiv 2309.17249, with the mean
// of log-probabilities in place of the logarithm of the mean): offsets[c] = -mean_i s_ic, moved to sum 0; scale 1.
// `scores` is row-major [texts, labels]. InvalidArgument: fewer than two texts or labels, a size that is no multiple of
// `labels`, or a score that is not finite.
absl::StatusOr<LabelOffset> BatchLabelOffset(size_t labels, absl::Span<const double> scores);

// Whether each text's label is chosen once an offset is fitted to the other texts: ten folds, each label's texts dealt
// to them in turn, each fold answered by a fit to the other nine. Where nothing else is there to fit to, the scores are
// left as they are. The folds depend on the gold labels and the order of the texts alone, so that two methods are
// treated alike. `scores` as FitLabelOffset takes them.
std::vector<bool> RightAfterOffset(const LabelScores& scores);
inline constexpr int kOffsetFolds = 10;

// The label that `offset` chooses for one text. Of equal scores the first. `scores`: [labels], as many as the offsets.
int ChooseLabel(const LabelOffset& offset, absl::Span<const double> scores);

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_LABEL_OFFSET_H_
