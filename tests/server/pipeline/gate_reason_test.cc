#include "server/pipeline/gate_reason.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "server/pipeline/confidence.h"
#include "server/sampling/readout.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

OptimizationReport ReportOf(GateDecision gate) {
  OptimizationReport report;
  report.gate = gate;
  report.settings.collection = "tickets";
  report.nearest_distance = 1.25;
  report.max_neighbor_distance = 0.875;
  report.base_confidence = 0.5;
  report.optimized_confidence = 0.25;
  report.losses = {1.5, 1.625, 1.5};
  report.validation_losses = {0.75, 0.8125};
  report.selected_step = 1;
  return report;
}

TEST(GateReason, IsEmptyWhereNothingWasSetAside) {
  EXPECT_EQ(GateReason(ReportOf(GateDecision::kApplied)), "");
  EXPECT_EQ(GateReason(ReportOf(GateDecision::kNotRequested)), "");
}

TEST(GateReason, TellsBothDistancesAndWhoseLimitItIs) {
  OptimizationReport report = ReportOf(GateDecision::kSkippedNeighborsFar);
  EXPECT_EQ(GateReason(report),
            "the nearest reference is at distance 1.2500; 95 % of the collection's references have another one within "
            "0.8750");
  report.settings.gate.max_neighbor_distance = 0.875;
  EXPECT_EQ(GateReason(report), "the nearest reference is at distance 1.2500, beyond max_neighbor_distance 0.8750");
  report.settings.gate.max_neighbor_distance.reset();
  report.max_neighbor_distance = 0.001;
  EXPECT_THAT(GateReason(report), HasSubstr("all alike"));
}

TEST(GateReason, TellsWhatEachOtherConditionCompared) {
  EXPECT_THAT(GateReason(ReportOf(GateDecision::kSkippedNoNeighbors)), HasSubstr("\"tickets\""));
  OptimizationReport unshifted = ReportOf(GateDecision::kSkippedNoNeighbors);
  unshifted.settings.method = Method::kAmortizedShift;
  unshifted.neighbors.emplace_back();
  EXPECT_THAT(GateReason(unshifted), HasSubstr("amortized shift"));
  OptimizationReport report = ReportOf(GateDecision::kSkippedBaseConfident);
  report.settings.gate.max_base_confidence = 0.4;
  EXPECT_EQ(GateReason(report), "the model is 50.0 % sure by itself, max_base_confidence is 40 %");
  EXPECT_EQ(GateReason(ReportOf(GateDecision::kRevertedLossNotReduced)),
            "the loss of the neighbors went from 1.5000 to 1.5000");
  report = ReportOf(GateDecision::kRevertedValidationLossNotReduced);
  report.settings.gate.min_validation_loss_reduction = 0.1;
  EXPECT_EQ(GateReason(report),
            "the loss of the held-out neighbors went from 0.7500 to 0.8125; it has to fall by 10 %");
  report = ReportOf(GateDecision::kRevertedNotConfident);
  report.settings.gate.min_optimized_confidence = 0.6;
  EXPECT_EQ(GateReason(report), "the optimized model is 25.0 % sure, min_optimized_confidence is 60 %");
}

TEST(Confidence, IsAmongTheFirstTokensOfChoicesThatDiffer) {
  const std::vector<float> logits = {0, 1, 3, 1};
  const double all = std::exp(3.0) / (1 + 2 * std::exp(1.0) + std::exp(3.0));
  const auto confidence = [&](const std::vector<int32_t>& choice_tokens) {
    ReadoutRequest request;
    request.distribution = true;
    request.tokens = choice_tokens;
    Readout next;
    ReadOut(logits, request, next);
    return Confidence(next, choice_tokens);
  };
  EXPECT_NEAR(confidence({}), all, 1e-12);
  EXPECT_NEAR(confidence({1, 1}), all, 1e-12);
  EXPECT_NEAR(confidence({0, 1, 0}), std::exp(1.0) / (1 + std::exp(1.0)), 1e-12);
}

}  // namespace
}  // namespace c3po
