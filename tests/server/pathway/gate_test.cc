#include "server/pathway/gate.h"

#include <gtest/gtest.h>

#include <cmath>

namespace c3po {
namespace {

TEST(Gate, SkipsWithoutNeighborsEvenWhenDisabled) {
  GateOptions options;
  options.enabled = false;
  EXPECT_EQ(GateBeforeOptimization(options, false, 0, 0.5), GateDecision::kSkippedNoNeighbors);
}

TEST(Gate, SkipsWhenTheNearestIsTooFarOrTheModelIsSure) {
  GateOptions options;
  options.max_neighbor_distance = 0.8;
  options.max_base_confidence = 0.9;
  EXPECT_EQ(GateBeforeOptimization(options, true, 0.81, 0.1), GateDecision::kSkippedNeighborsFar);
  EXPECT_EQ(GateBeforeOptimization(options, true, 0.8, 0.9), GateDecision::kSkippedBaseConfident);
  EXPECT_EQ(GateBeforeOptimization(options, true, 0.8, 0.89), GateDecision::kApplied);
  options.enabled = false;
  EXPECT_EQ(GateBeforeOptimization(options, true, 2, 1), GateDecision::kApplied);
}

TEST(Gate, WhatIsNotANumberPassesNoCondition) {
  const double nan = std::nan("");
  GateOptions options;
  EXPECT_EQ(GateAfterOptimization(options, {1.0, nan}, std::nullopt), GateDecision::kRevertedLossNotReduced);
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 0.5}, LossChange{nan, 0.5}),
            GateDecision::kRevertedValidationLossNotReduced);
  options.max_neighbor_distance = 0.8;
  EXPECT_EQ(GateBeforeOptimization(options, true, nan, 0.1), GateDecision::kSkippedNeighborsFar);
  options.max_neighbor_distance.reset();
  options.max_base_confidence = 0.9;
  EXPECT_EQ(GateBeforeOptimization(options, true, 0.5, nan), GateDecision::kSkippedBaseConfident);
  options.min_optimized_confidence = 0.5;
  EXPECT_EQ(GateAfterTrial(options, nan), GateDecision::kRevertedNotConfident);
}

TEST(Gate, RevertsUnlessTheLossFellEnough) {
  GateOptions options;
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 0.99}, std::nullopt), GateDecision::kApplied);
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 1.0}, std::nullopt), GateDecision::kRevertedLossNotReduced);
  options.min_loss_reduction = 0.1;
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 0.95}, std::nullopt), GateDecision::kRevertedLossNotReduced);
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 0.85}, std::nullopt), GateDecision::kApplied);
  options.enabled = false;
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 2.0}, std::nullopt), GateDecision::kApplied);
}

TEST(Gate, RevertsWhenTheHeldOutLossDidNotFallEnough) {
  GateOptions options;
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 0.5}, LossChange{1.0, 0.99}), GateDecision::kApplied);
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 0.5}, LossChange{1.0, 1.0}),
            GateDecision::kRevertedValidationLossNotReduced);
  options.min_validation_loss_reduction = 0.1;
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 0.5}, LossChange{2.0, 1.85}),
            GateDecision::kRevertedValidationLossNotReduced);
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 0.5}, LossChange{2.0, 1.75}), GateDecision::kApplied);
  options.enabled = false;
  EXPECT_EQ(GateAfterOptimization(options, {1.0, 0.5}, LossChange{1.0, 2.0}), GateDecision::kApplied);
}

TEST(Gate, RevertsWhenTheOptimizedModelIsUnsure) {
  GateOptions options;
  EXPECT_EQ(GateAfterTrial(options, 0.01), GateDecision::kApplied);
  options.min_optimized_confidence = 0.6;
  EXPECT_EQ(GateAfterTrial(options, 0.6), GateDecision::kApplied);
  EXPECT_EQ(GateAfterTrial(options, 0.59), GateDecision::kRevertedNotConfident);
  options.enabled = false;
  EXPECT_EQ(GateAfterTrial(options, 0.01), GateDecision::kApplied);
}

}  // namespace
}  // namespace c3po
