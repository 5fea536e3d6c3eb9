// Newton's method on a strictly convex function. The unknowns are u = a r and b_c; scores are centered per text and
// divided by r, which changes no softmax and makes the unknowns of one size. The bound a >= 0 is one linear inequality:
// where the free optimum breaks it, the bounded optimum lies on it, so that a second fit without u is the solution.

#include "index/base/label_offset.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

constexpr int kStepsMax = 200;
constexpr int kHalvingsMax = 60;

absl::Status CheckFiniteScores(absl::Span<const double> scores, size_t labels) {
  for (size_t i = 0; i < scores.size(); ++i) {
    if (std::isfinite(scores[i])) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("score ", i % labels, " of text ", i / labels, " is ", scores[i], ", which is not a number"));
  }
  return absl::OkStatus();
}

absl::Status Check(const LabelScores& scores) {
  if (scores.labels < 2) return absl::InvalidArgumentError("an offset needs at least two labels");
  if (scores.texts() == 0) return absl::InvalidArgumentError("an offset needs at least one text");
  if (scores.scores.size() != scores.texts() * scores.labels) {
    return absl::InvalidArgumentError(absl::StrCat(scores.scores.size(), " scores are not ", scores.labels,
                                                   " for each of ", scores.texts(), " texts"));
  }
  for (const int gold : scores.gold) {
    if (gold < 0 || static_cast<size_t>(gold) >= scores.labels) {
      return absl::InvalidArgumentError(absl::StrCat("gold label ", gold, " is not in [0, ", scores.labels, ")"));
    }
  }
  return CheckFiniteScores(scores.scores, scores.labels);
}

// The function above as one of p = (u, b_0, ..., b_{K-1}), with its derivatives.
class Objective {
 public:
  Objective(size_t labels, std::vector<double> z, const std::vector<int>& gold, bool with_scale)
      : labels_(labels), z_(std::move(z)), gold_(gold), with_scale_(with_scale) {}

  size_t size() const { return labels_ + 1; }

  double Value(const std::vector<double>& p) const {
    double value = 0;
    for (const double each : p) value += kLabelOffsetRidge / 2 * each * each;
    std::vector<double> logits(labels_);
    for (size_t text = 0; text < gold_.size(); ++text) {
      value += LogPartition(p, text, &logits) - logits[gold_[text]];
    }
    return value;
  }

  // `hessian` is row-major [size, size].
  void Derivatives(const std::vector<double>& p, std::vector<double>* gradient, std::vector<double>* hessian) const {
    const size_t n = size();
    gradient->assign(n, 0);
    hessian->assign(n * n, 0);
    std::vector<double> q(labels_);
    for (size_t text = 0; text < gold_.size(); ++text) {
      const double partition = LogPartition(p, text, &q);
      const double* z = &z_[text * labels_];
      double mean = 0, square = 0;
      for (size_t c = 0; c < labels_; ++c) {
        q[c] = std::exp(q[c] - partition);
        mean += q[c] * z[c];
        square += q[c] * z[c] * z[c];
      }
      (*gradient)[0] += mean - z[gold_[text]];
      (*hessian)[0] += square - mean * mean;
      for (size_t c = 0; c < labels_; ++c) {
        (*gradient)[c + 1] += q[c] - (static_cast<size_t>(gold_[text]) == c ? 1 : 0);
        (*hessian)[c + 1] += q[c] * (z[c] - mean);
        double* row = &(*hessian)[(c + 1) * n + 1];
        for (size_t d = 0; d < labels_; ++d) row[d] -= q[c] * q[d];
        row[c] += q[c];
      }
    }
    if (!with_scale_) {
      (*gradient)[0] = 0;
      std::fill_n(hessian->begin(), n, 0.0);
    }
    for (size_t i = 0; i < n; ++i) {
      (*hessian)[i * n] = (*hessian)[i];
      (*hessian)[i * n + i] += kLabelOffsetRidge;
      (*gradient)[i] += kLabelOffsetRidge * p[i];
    }
  }

 private:
  // The logarithm of the sum of exponentials; `logits` gets u z + b of the text.
  double LogPartition(const std::vector<double>& p, size_t text, std::vector<double>* logits) const {
    for (size_t c = 0; c < labels_; ++c) (*logits)[c] = p[0] * z_[text * labels_ + c] + p[c + 1];
    const double most = *std::max_element(logits->begin(), logits->end());
    double sum = 0;
    for (const double logit : *logits) sum += std::exp(logit - most);
    return most + std::log(sum);
  }

  const size_t labels_;
  const std::vector<double> z_;  // [texts, labels]
  const std::vector<int>& gold_;
  const bool with_scale_;
};

// x with A x = b for a positive definite A, row-major [n, n], by Cholesky's factors in place. The ridge bounds A from
// below, so that no pivot vanishes.
void SolvePositive(size_t n, std::vector<double>* a, std::vector<double>* b) {
  std::vector<double>& m = *a;
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double sum = m[i * n + j];
      for (size_t k = 0; k < j; ++k) sum -= m[i * n + k] * m[j * n + k];
      m[i * n + j] = i == j ? std::sqrt(std::max(sum, kLabelOffsetRidge / 2)) : sum / m[j * n + j];
    }
  }
  std::vector<double>& x = *b;
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < i; ++k) x[i] -= m[i * n + k] * x[k];
    x[i] /= m[i * n + i];
  }
  for (size_t i = n; i-- > 0;) {
    for (size_t k = i + 1; k < n; ++k) x[i] -= m[k * n + i] * x[k];
    x[i] /= m[i * n + i];
  }
}

std::vector<double> Minimize(const Objective& objective, size_t texts) {
  std::vector<double> p(objective.size(), 0.0), gradient, hessian;
  double value = objective.Value(p);
  for (int step = 0; step < kStepsMax; ++step) {
    objective.Derivatives(p, &gradient, &hessian);
    double largest = 0;
    for (const double each : gradient) largest = std::max(largest, std::abs(each));
    if (largest <= 1e-11 * static_cast<double>(texts + 1)) break;
    std::vector<double> direction = gradient;
    SolvePositive(objective.size(), &hessian, &direction);
    const double slope = std::inner_product(gradient.begin(), gradient.end(), direction.begin(), 0.0);
    bool moved = false;
    double length = 1;
    for (int halving = 0; halving < kHalvingsMax && !moved; ++halving, length /= 2) {
      std::vector<double> next = p;
      for (size_t i = 0; i < next.size(); ++i) next[i] -= length * direction[i];
      const double reached = objective.Value(next);
      if (!(reached <= value - 1e-4 * length * slope)) continue;
      moved = reached < value;
      p = std::move(next);
      value = reached;
      if (!moved) break;
    }
    if (!moved) break;  // As low as doubles tell.
  }
  return p;
}

// Moves them to sum 0, which no choice depends on.
void Center(std::vector<double>* offsets) {
  const double mean = std::accumulate(offsets->begin(), offsets->end(), 0.0) / static_cast<double>(offsets->size());
  for (double& offset : *offsets) offset -= mean;
}

}  // namespace

absl::StatusOr<LabelOffset> FitLabelOffset(const LabelScores& scores) {
  if (absl::Status status = Check(scores); !status.ok()) return status;
  std::vector<double> z = scores.scores;
  double squares = 0;
  for (size_t text = 0; text < scores.texts(); ++text) {
    double* row = &z[text * scores.labels];
    const double mean = std::accumulate(row, row + scores.labels, 0.0) / static_cast<double>(scores.labels);
    for (size_t c = 0; c < scores.labels; ++c) {
      row[c] -= mean;
      squares += row[c] * row[c];
    }
  }
  const double spread = std::sqrt(squares / static_cast<double>(z.size()));
  const bool with_scale = spread > 0;
  for (double& each : z) each /= with_scale ? spread : 1;
  std::vector<double> p = Minimize(Objective(scores.labels, z, scores.gold, with_scale), scores.texts());
  if (p[0] < 0) p = Minimize(Objective(scores.labels, z, scores.gold, /*with_scale=*/false), scores.texts());
  LabelOffset offset;
  offset.scale = with_scale ? p[0] / spread : 0;
  offset.offsets.assign(p.begin() + 1, p.end());
  Center(&offset.offsets);
  return offset;
}

absl::StatusOr<LabelOffset> BatchLabelOffset(size_t labels, absl::Span<const double> scores) {
  if (labels < 2) return absl::InvalidArgumentError("an offset needs at least two labels");
  if (scores.size() % labels != 0 || scores.size() / labels < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat(scores.size(), " scores are not ", labels, " for each of two texts or more"));
  }
  if (absl::Status status = CheckFiniteScores(scores, labels); !status.ok()) return status;
  LabelOffset offset;
  offset.offsets.assign(labels, 0.0);
  const double texts = static_cast<double>(scores.size() / labels);
  for (size_t i = 0; i < scores.size(); ++i) offset.offsets[i % labels] -= scores[i] / texts;
  Center(&offset.offsets);
  return offset;
}

std::vector<bool> RightAfterOffset(const LabelScores& scores) {
  std::vector<int> fold_of(scores.texts());
  std::vector<int> dealt(scores.labels, 0);
  for (size_t i = 0; i < scores.texts(); ++i) fold_of[i] = dealt[scores.gold[i]]++ % kOffsetFolds;
  std::vector<bool> right(scores.texts(), false);
  for (int fold = 0; fold < kOffsetFolds; ++fold) {
    LabelScores others;
    others.labels = scores.labels;
    for (size_t i = 0; i < scores.texts(); ++i) {
      if (fold_of[i] == fold) continue;
      const absl::Span<const double> row = scores.row(i);
      others.scores.insert(others.scores.end(), row.begin(), row.end());
      others.gold.push_back(scores.gold[i]);
    }
    absl::StatusOr<LabelOffset> fitted = FitLabelOffset(others);
    const LabelOffset offset =
        fitted.ok() ? *std::move(fitted) : LabelOffset{1, std::vector<double>(scores.labels, 0.0)};
    for (size_t i = 0; i < scores.texts(); ++i) {
      if (fold_of[i] == fold) right[i] = ChooseLabel(offset, scores.row(i)) == scores.gold[i];
    }
  }
  return right;
}

int ChooseLabel(const LabelOffset& offset, absl::Span<const double> scores) {
  size_t best = 0;
  const auto value = [&](size_t c) { return offset.scale * scores[c] + offset.offsets[c]; };
  for (size_t c = 1; c < scores.size(); ++c) {
    if (value(c) > value(best)) best = c;
  }
  return static_cast<int>(best);
}

}  // namespace c3po
