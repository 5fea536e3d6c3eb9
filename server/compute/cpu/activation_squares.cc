#include "server/compute/cpu/activation_squares.h"

#include <algorithm>

#include "server/compute/cpu/cpu_weights.h"

namespace c3po::cpu {
namespace {

// Which of the units that lie in a role's matrix a stored weight is of.
int64_t UnitOf(const ModelConfig& config, const WeightUse& use) {
  const int64_t f = config.intermediate_size;
  if (use.role == WeightRole::kExpertsGateUp) return use.row / (2 * f);
  if (use.role == WeightRole::kExpertsDown) return use.column / f;
  return 0;
}

}  // namespace

ActivationSquares::OfMatrix::OfMatrix(int64_t units, int64_t columns)
    : units_(units),
      columns_(columns),
      sums_(static_cast<size_t>(units * columns)),
      rows_(static_cast<size_t>(units)) {}

void ActivationSquares::OfMatrix::Add(const float* row, int64_t unit) {
  double* const sums = sums_.data() + unit * columns_;
  for (int64_t k = 0; k < columns_; ++k) sums[k] += double{row[k]} * double{row[k]};
  ++rows_[static_cast<size_t>(unit)];
}

void ActivationSquares::OfMatrix::Observe(const RowsView& x, int64_t width, int64_t unit) {
  for (int64_t i = 0; i < x.rows; ++i) {
    const float* const row = x.data + (x.index ? x.index[i] : i) * x.stride;
    if (unit >= 0) {
      Add(row, unit);
      continue;
    }
    const int64_t step = width == columns_ ? 0 : columns_;
    for (int64_t u = 0; u < units_; ++u) Add(row + u * step, u);
  }
}

std::vector<float> ActivationSquares::OfMatrix::Means(int64_t unit) const {
  std::vector<double> sums(static_cast<size_t>(columns_));
  int64_t rows = 0;
  const bool reached = this->rows(unit) > 0;
  for (int64_t u = reached ? unit : 0; u < (reached ? unit + 1 : units_); ++u) {
    for (int64_t k = 0; k < columns_; ++k) sums[static_cast<size_t>(k)] += sums_[static_cast<size_t>(u * columns_ + k)];
    rows += this->rows(u);
  }
  if (rows == 0) return {};
  std::vector<float> means;
  for (const double sum : sums) means.push_back(static_cast<float>(sum / static_cast<double>(rows)));
  return means;
}

void ActivationSquares::Observe(WeightRole role, int layer, int64_t units, WeightView& view) {
  if (view.data == nullptr) return;
  const int64_t columns = role == WeightRole::kExpertsDown ? view.columns / units : view.columns;
  OfMatrix& sums = matrices_.try_emplace({role, layer}, units, columns).first->second;
  view.observer = &sums;
}

void ActivationSquares::Observe(const ModelConfig& config, CpuWeights& weights) {
  for (int l = 0; l < static_cast<int>(weights.layers.size()); ++l) {
    LayerViews& views = weights.layers[static_cast<size_t>(l)];
    Observe(WeightRole::kQkv, l, 1, views.qkv);
    Observe(WeightRole::kOutput, l, 1, views.output);
    Observe(WeightRole::kQueryExpand, l, 1, views.query_expand);
    Observe(WeightRole::kKeyValueExpand, l, 1, views.kv_expand);
    Observe(WeightRole::kExpertsGateUp, l, config.experts, views.experts.gate_up);
    Observe(WeightRole::kExpertsDown, l, config.experts, views.experts.down);
    Observe(WeightRole::kSharedGateUp, l, 1, views.shared.gate_up);
    Observe(WeightRole::kSharedDown, l, 1, views.shared.down);
  }
  Observe(WeightRole::kHead, 0, 1, weights.lm_head);
}

std::vector<float> ActivationSquares::Of(const ModelConfig& config, const WeightUse& use, int64_t columns) const {
  const auto found = matrices_.find({use.role, use.layer});
  if (found == matrices_.end()) return {};
  const int64_t unit = UnitOf(config, use);
  const std::vector<float> means = found->second.Means(unit);
  if (means.empty()) return {};
  const auto first = static_cast<size_t>(use.column - (use.role == WeightRole::kExpertsDown ? unit : 0) *
                                                          int64_t{config.intermediate_size});
  return {means.begin() + static_cast<int64_t>(first), means.begin() + static_cast<int64_t>(first) + columns};
}

ActivationSquares::Reach ActivationSquares::reach() const {
  Reach reach;
  for (const auto& [key, matrix] : matrices_) {
    for (int64_t u = 0; u < matrix.units(); ++u) {
      ++reach.units;
      if (matrix.rows(u) == 0) ++reach.unreached;
    }
  }
  return reach;
}

}  // namespace c3po::cpu
