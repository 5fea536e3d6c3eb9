#ifndef C3PO_CLIENT_EVAL_MARGIN_AUC_H_
#define C3PO_CLIENT_EVAL_MARGIN_AUC_H_

#include <cstddef>
#include <optional>
#include <vector>

#include "absl/types/span.h"
#include "client/eval/statistics.h"
#include "index/base/label_offset.h"

namespace c3po {

// How well a method orders questions, whatever its bias among the labels: figures that no label offset changes. Pure
// and thread-safe.

// The area under the curve of the choices' margin. For two labels c and d, with the margin m_i = s_ic - s_id,
//   A(c, d) = (1 / n_c n_d) sum_{i of c, j of d} [m_i > m_j] + [m_i = m_j] / 2,
// which is the probability that a question of c has a larger margin for c than one of d (Mann and Whitney 1947). For
// more labels the mean of A over all pairs of labels (Hand and Till, Machine Learning 45, 2001, with the pair's margin
// in the place of the class's probability, so that an offset cancels). A label with fewer than two questions takes no
// part: its share of the variance cannot be known.
struct MarginAuc {
  double value = 0;  // in [0, 1]; 0.5: the margins tell nothing
  std::vector<double>
      components;         // [questions]: DeLong's structural component of each, 0 where its label takes no part
  std::vector<int> gold;  // [questions]: the right label, -1 where it takes no part
  size_t fewest = 0;      // questions of the rarest label that takes part
};

// Absent where fewer than two labels have two questions, or where a score is not finite.
std::optional<MarginAuc> MeasureMarginAuc(const LabelScores& scores);

// The mean of several tasks' values, each weighed by its questions, with the 95 % interval of DeLong, DeLong and
// Clarke-Pearson (Biometrics 44, 1988): for label c with questions i, var = sum_c var_i(U_ci) / n_c, where U are the
// structural components; tasks are independent. The interval is value -+ 1.96 sd, cut to [0, 1]. Where the variance is
// 0, as for labels that separate, it is Wilson's for so many questions as the rarest label has. No tasks: zeros.
Estimate PoolMarginAuc(absl::Span<const MarginAuc> tasks);

struct AucDifference {
  Estimate difference;  // in [-1, 1]
  double p_value = 1;   // two-sided, of the hypothesis that both order alike
};

// `after` against `before`, task by task on the same questions: DeLong's paired test, z = difference / sd with the
// variance of the components' differences, p = erfc(|z| / sqrt 2). The normal approximation holds for some dozens of
// questions per label. Where that variance is 0 and the difference is not, the interval spans those of either side and
// p = min(1, 2 / 2^n), n the rarest label's questions. Sizes must agree. No tasks: zeros.
AucDifference CompareMarginAuc(absl::Span<const MarginAuc> after, absl::Span<const MarginAuc> before);

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_MARGIN_AUC_H_
