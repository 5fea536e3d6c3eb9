#ifndef C3PO_CLIENT_CLI_EXPLAIN_H_
#define C3PO_CLIENT_CLI_EXPLAIN_H_

#include <string>
#include <vector>

#include "c3po/v1/generation.pb.h"
#include "c3po/v1/reference.pb.h"
#include "client/cli/terminal.h"

namespace c3po {

// What C3PO did to a request, as tables: neighbors with distances and kernel weights, their loss before and after, the
// experts that moved most. Ends with a newline.
std::string ExplainOptimization(const v1::OptimizationReport& report, const Terminal& terminal);

// Tokens, finish reason, and the time of each stage that took any.
std::string ExplainSummary(const v1::GenerationSummary& summary, const Terminal& terminal);
// The scores of a request's choices, with an arrow at the answer, and an empty line; empty where it had none.
std::string ExplainChoices(const v1::GenerationSummary& summary, const std::vector<std::string>& choices,
                           const Terminal& terminal);
std::string ExplainTimings(const v1::StageTimings& timings, const Terminal& terminal);

// "of the model alone: scale 2.1, " no" -0.301, " yes" +0.301, 240 references, accuracy 50.0 → 62.5 %"; of many labels
// the first.
std::string DescribeOffset(const v1::OffsetInfo& offset);

// ", held-out accuracy 50.0 → 62.5 %"; empty where the references held apart have no choices.
std::string PriorAccuracies(const v1::PriorInfo& prior);

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_EXPLAIN_H_
