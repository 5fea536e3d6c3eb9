#include "client/eval/margin_auc.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>

namespace c3po {
namespace {

constexpr double kNormalQuantile = 1.959963984540054;  // of 0.975

// The share of the sorted margins that are below `margin`, those that are equal counted half.
double ShareBelow(const std::vector<double>& sorted, double margin) {
  const auto [from, to] = std::equal_range(sorted.begin(), sorted.end(), margin);
  const double below = static_cast<double>(from - sorted.begin()), equal = static_cast<double>(to - from);
  return (below + equal / 2) / static_cast<double>(sorted.size());
}

double QuestionsOf(absl::Span<const MarginAuc> tasks) {
  double questions = 0;
  for (const MarginAuc& task : tasks) questions += static_cast<double>(task.components.size());
  return questions;
}

// The variance of a task's value whose components are these.
double Variance(const std::vector<double>& components, const std::vector<int>& gold) {
  struct Moments {
    double count = 0, sum = 0, squares = 0;
  };
  std::map<int, Moments> labels;
  for (size_t i = 0; i < gold.size(); ++i) {
    if (gold[i] < 0) continue;
    Moments& moments = labels[gold[i]];
    ++moments.count;
    moments.sum += components[i];
  }
  for (size_t i = 0; i < gold.size(); ++i) {
    if (gold[i] < 0) continue;
    Moments& moments = labels[gold[i]];
    const double distance = components[i] - moments.sum / moments.count;
    moments.squares += distance * distance;
  }
  double variance = 0;
  for (const auto& [label, moments] : labels) variance += moments.squares / (moments.count - 1) / moments.count;
  return variance;
}

size_t FewestOf(absl::Span<const MarginAuc> tasks) {
  size_t fewest = tasks.empty() ? 0 : tasks.front().fewest;
  for (const MarginAuc& task : tasks) fewest = std::min(fewest, task.fewest);
  return fewest;
}

// What rounding leaves of a variance that is 0.
bool IsNone(double variance) { return variance < 1e-24; }

}  // namespace

std::optional<MarginAuc> MeasureMarginAuc(const LabelScores& scores) {
  if (std::any_of(scores.scores.begin(), scores.scores.end(), [](double s) { return !std::isfinite(s); })) return {};
  std::vector<std::vector<size_t>> of_label(scores.labels);
  for (size_t i = 0; i < scores.texts(); ++i) of_label[scores.gold[i]].push_back(i);
  std::vector<size_t> labels;
  for (size_t c = 0; c < scores.labels; ++c) {
    if (of_label[c].size() >= 2) labels.push_back(c);
  }
  if (labels.size() < 2) return {};
  MarginAuc auc;
  auc.components.assign(scores.texts(), 0.0);
  auc.gold.assign(scores.texts(), -1);
  auc.fewest = scores.texts();
  for (const size_t c : labels) {
    auc.fewest = std::min(auc.fewest, of_label[c].size());
    for (const size_t i : of_label[c]) auc.gold[i] = static_cast<int>(c);
  }
  const double pairs = static_cast<double>(labels.size() * (labels.size() - 1) / 2);
  for (size_t a = 0; a < labels.size(); ++a) {
    for (size_t b = a + 1; b < labels.size(); ++b) {
      const size_t c = labels[a], d = labels[b];
      const auto margins = [&](const std::vector<size_t>& questions) {
        std::vector<double> sorted;
        for (const size_t i : questions) sorted.push_back(scores.row(i)[c] - scores.row(i)[d]);
        std::sort(sorted.begin(), sorted.end());
        return sorted;
      };
      const std::vector<double> of_c = margins(of_label[c]), of_d = margins(of_label[d]);
      for (const size_t i : of_label[c]) {
        const double share = ShareBelow(of_d, scores.row(i)[c] - scores.row(i)[d]);
        auc.components[i] += share / pairs;
        auc.value += share / pairs / static_cast<double>(of_c.size());
      }
      for (const size_t j : of_label[d]) {
        auc.components[j] += (1 - ShareBelow(of_c, scores.row(j)[c] - scores.row(j)[d])) / pairs;
      }
    }
  }
  auc.value = std::clamp(auc.value, 0.0, 1.0);  // Rounding.
  return auc;
}

Estimate PoolMarginAuc(absl::Span<const MarginAuc> tasks) {
  const double questions = QuestionsOf(tasks);
  if (questions == 0) return {};
  double value = 0, variance = 0;
  for (const MarginAuc& task : tasks) {
    const double weight = static_cast<double>(task.components.size()) / questions;
    value += weight * task.value;
    variance += weight * weight * Variance(task.components, task.gold);
  }
  if (IsNone(variance)) {
    const int64_t fewest = static_cast<int64_t>(FewestOf(tasks));
    const Estimate wilson = Proportion(std::llround(value * static_cast<double>(fewest)), fewest);
    return {value, std::min(value, wilson.low), std::max(value, wilson.high)};
  }
  const double reach = kNormalQuantile * std::sqrt(variance);
  return {value, std::max(0.0, value - reach), std::min(1.0, value + reach)};
}

AucDifference CompareMarginAuc(absl::Span<const MarginAuc> after, absl::Span<const MarginAuc> before) {
  AucDifference result;
  const double questions = QuestionsOf(after);
  if (questions == 0) return result;
  double value = 0, variance = 0;
  for (size_t task = 0; task < after.size(); ++task) {
    const double weight = static_cast<double>(after[task].components.size()) / questions;
    std::vector<double> differences = after[task].components;
    for (size_t i = 0; i < differences.size(); ++i) differences[i] -= before[task].components[i];
    value += weight * (after[task].value - before[task].value);
    variance += weight * weight * Variance(differences, after[task].gold);
  }
  result.difference = {value, value, value};
  if (IsNone(variance)) {
    if (std::abs(value) < 1e-12) return result;
    const Estimate first = PoolMarginAuc(after), second = PoolMarginAuc(before);
    result.difference = {value, std::max(-1.0, first.low - second.high), std::min(1.0, first.high - second.low)};
    result.p_value = std::min(1.0, std::ldexp(2.0, -static_cast<int>(std::min<size_t>(FewestOf(after), 1000))));
    return result;
  }
  const double deviation = std::sqrt(variance);
  result.difference.low = std::max(-1.0, value - kNormalQuantile * deviation);
  result.difference.high = std::min(1.0, value + kNormalQuantile * deviation);
  result.p_value = std::erfc(std::abs(value) / deviation / std::sqrt(2.0));
  return result;
}

}  // namespace c3po
