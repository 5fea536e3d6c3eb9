#ifndef C3PO_SERVER_COMPUTE_CPU_ACTIVATION_SQUARES_H_
#define C3PO_SERVER_COMPUTE_CPU_ACTIVATION_SQUARES_H_

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "server/compute/cpu/matrix_products.h"
#include "server/model/config/model_config.h"
#include "server/model/config/weight_use.h"

namespace c3po::cpu {

struct CpuWeights;

// The mean squares of the activations that meet each column of a model's matrices: what an error of a weight there
// weighs in the product, E[(sum_k e_k x_k)^2] ~ sum_k e_k^2 E[x_k^2] where columns do not correlate. Quantizing takes
// them as weights of its error (quantized_panels.h).
//
// Of routed experts each has its own, from the rows that were routed to it; those of kExpertsDown contain the mixing
// weights, as the products do. Filled by one thread.
class ActivationSquares {
 public:
  // Sums over the rows that one matrix has met. Its columns are the same for all of it, but for experts: these are
  // `units` side by side, gate and up [n 2f, d] or down [d, n f], with d or f columns each.
  class OfMatrix final : public ProductObserver {
   public:
    OfMatrix(int64_t units, int64_t columns);
    // x [m, columns], a product with one unit's part of the matrix; or all units': x [m, columns], which they share, or
    // [m, units * columns].
    void Observe(const RowsView& x, int64_t width, int64_t unit) override;

    int64_t units() const { return units_; }
    int64_t rows(int64_t unit) const { return rows_[static_cast<size_t>(unit)]; }
    // Mean squares of that unit, [columns]. Of one that no row reached: of all rows of all units; empty: there is none.
    std::vector<float> Means(int64_t unit) const;

   private:
    void Add(const float* row, int64_t unit);

    const int64_t units_, columns_;
    std::vector<double> sums_;   // [units, columns]
    std::vector<int64_t> rows_;  // [units]
  };

  // Lets the products with these weights tell their activations: the matrices that are quantized, by projections,
  // experts, shared experts and LM head. The weights have to be gone before this is.
  void Observe(const ModelConfig& config, CpuWeights& weights);

  // Of the columns of a stored weight, `columns` of them from use.column on. Empty: nothing is known, as of an
  // embedding, which is looked up, too, where it is the LM head.
  std::vector<float> Of(const ModelConfig& config, const WeightUse& use, int64_t columns) const;

  // Units (matrices, and of experts' matrices each expert) that no row reached, and how many there are.
  struct Reach {
    int64_t unreached = 0, units = 0;
  };
  Reach reach() const;

 private:
  void Observe(WeightRole role, int layer, int64_t units, WeightView& view);

  std::map<std::pair<WeightRole, int>, OfMatrix> matrices_;
};

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_ACTIVATION_SQUARES_H_
