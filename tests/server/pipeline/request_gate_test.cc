#include "server/pipeline/request_gate.h"

#include <gtest/gtest.h>

namespace c3po {
namespace {

OptimizationReport Report(Method method) {
  OptimizationReport report;
  report.settings.method = method;
  report.nearest_distance = 1.0;
  report.max_neighbor_distance = 0.5;
  report.base_confidence = 0.5;
  return report;
}

TEST(RequestGate, ComparesTheNearestReferenceWithTheDistanceThatRetrievalFound) {
  OptimizationReport report = Report(Method::kKernelRegression);
  report.settings.gate.max_neighbor_distance = 2;  // What retrieval made of it counts.
  EXPECT_EQ(GateBeforeSearch(report), GateDecision::kSkippedNeighborsFar);
  report.max_neighbor_distance = 1;
  EXPECT_EQ(GateBeforeSearch(report), GateDecision::kApplied);
  report.nearest_distance.reset();
  EXPECT_EQ(GateBeforeSearch(report), GateDecision::kSkippedNoNeighbors);
}

TEST(RequestGate, TheOracleAndAnUngatedPriorNeedNoNeighbors) {
  OptimizationReport oracle = Report(Method::kOracle);
  EXPECT_EQ(GateBeforeSearch(oracle), GateDecision::kApplied);
  OptimizationReport prior = Report(Method::kCollectionPrior);
  prior.nearest_distance.reset();
  EXPECT_EQ(GateBeforeSearch(prior), GateDecision::kSkippedNoNeighbors);
  prior.settings.gate.enabled = false;
  EXPECT_EQ(GateBeforeSearch(prior), GateDecision::kApplied);
}

TEST(RequestGate, JudgesTheIterateThatWasTakenUnlessItIsThePriorItself) {
  OptimizationReport report = Report(Method::kNeighborhoodGradientDescent);
  report.validation_losses = {1, 0.5, 2};
  report.selected_step = 1;
  EXPECT_EQ(GateAfterSearch(report, {1, 0.5}), GateDecision::kApplied);
  EXPECT_EQ(GateAfterSearch(report, {1, 1}), GateDecision::kRevertedLossNotReduced);
  report.selected_step = 2;
  EXPECT_EQ(GateAfterSearch(report, {1, 0.5}), GateDecision::kRevertedValidationLossNotReduced);
  report.selected_step = 0;
  EXPECT_EQ(GateAfterSearch(report, {1, 1}), GateDecision::kRevertedLossNotReduced);
  report.settings.use_prior = true;
  EXPECT_EQ(GateAfterSearch(report, {1, 1}), GateDecision::kApplied);
}

}  // namespace
}  // namespace c3po
