#ifndef C3PO_TESTS_SERVER_PATHWAY_QUADRATIC_H_
#define C3PO_TESTS_SERVER_PATHWAY_QUADRATIC_H_

#include <gtest/gtest.h>

#include <random>
#include <utility>

#include "server/pathway/pathway_optimizer.h"
#include "tests/server/pathway/one_unit.h"

namespace c3po {

inline Pathway RandomPathway(std::mt19937& rng, int layers, int experts) {
  Pathway pathway(layers, experts);
  for (int l = 0; l < layers; ++l) {
    double sum = 0;
    for (float& w : pathway.Row(l)) sum += w = std::exponential_distribution<float>(1)(rng) + 1e-3f;
    for (float& w : pathway.Row(l)) w = static_cast<float>(w / sum);
  }
  return pathway;
}

// J(w) = 1/2 ||w - target||^2, whose gradient is w - target; of shifts, J(s) = 1/2 ||s - target||^2.
class Quadratic final : public NeighborhoodObjective {
 public:
  explicit Quadratic(Pathway target) : target_(std::move(target)) {}
  absl::StatusOr<double> Evaluate(const RoutingOverride& routing, Pathway* gradient) override {
    ++evaluations;
    last_kind = routing.kind;
    double sum = 0;
    if (gradient) *gradient = routing.values;
    for (size_t i = 0; i < target_.weights.size(); ++i) {
      const double difference = double{routing.values.weights[i]} - target_.weights[i];
      sum += difference * difference / 2;
      if (gradient) gradient->weights[i] = static_cast<float>(difference);
    }
    return sum;
  }
  int evaluations = 0;
  RoutingOverride::Kind last_kind = RoutingOverride::Kind::kWeights;

 private:
  const Pathway target_;
};

inline OptimizationProblem MakeProblem(std::mt19937& rng, NeighborhoodObjective* objective, int core,
                                       ApplicationRule rule = ApplicationRule::kEveryNewToken) {
  OptimizationProblem problem;
  problem.initial = RandomPathway(rng, 3, 8);
  problem.critical_layers = {1, 4, 5};
  problem.core_experts = core;
  problem.rule = rule;
  problem.objective = objective;
  return problem;
}

inline void RunToEnd(PathwayOptimizer& optimizer) {
  for (int i = 0; i < 1000; ++i) {
    const auto finished = OneUnit(optimizer);
    ASSERT_TRUE(finished.ok()) << finished.status();
    if (*finished) return;
  }
  FAIL() << "did not finish";
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_PATHWAY_QUADRATIC_H_
