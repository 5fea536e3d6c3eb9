// What a report says first of methods that the server gave a label offset.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "client/eval/offset_reading.h"

namespace c3po {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

MethodSummary Method(const std::string& label, MethodRole role, bool with_offset) {
  MethodSummary method;
  method.label = label;
  method.role = role;
  method.with_offset = with_offset;
  if (role != MethodRole::kBaseline) method.paired = PairedComparison{{0.1, 0.05, 0.15}, 4, 0, {}, {}};
  return method;
}

ScopeSummary Scope(const std::string& name, const PairedComparison& to_offset) {
  ScopeSummary scope;
  scope.name = name;
  scope.items = 40;
  scope.labelled = {"mood"};
  scope.methods = {Method("none", MethodRole::kBaseline, false), Method("offset", MethodRole::kLabelOffset, true),
                   Method("ngd", MethodRole::kOptimization, false), Method("both", MethodRole::kOptimization, true),
                   Method("label-offset", MethodRole::kLabelOffset, false)};
  PairedComparison other = to_offset;
  other.improved = 99;
  scope.versus = {{"ngd", "offset", other}, {"both", "offset", to_offset}, {"both", "label-offset", other}};
  return scope;
}

TEST(ReadOffset, AMethodWithAnOffsetIsReadAgainstTheServersOffsetAloneFirst) {
  RunSummary summary;
  summary.overall = Scope("all tasks", {{0.125, 0.02, 0.23}, 5, 0, {}, {}});
  std::vector<std::string> reading = ReadOffset(summary);
  EXPECT_EQ(reading[0],
            "C3PO (both) against the offset alone (offset): +12.5 [+2.0, +23.0] points, 5 improved, "
            "0 worsened: so much is beyond the labels' offset.");
  EXPECT_THAT(reading[1], HasSubstr("Of the lift of C3PO"));
  for (size_t i = 1; i < reading.size(); ++i) EXPECT_THAT(reading[i], Not(HasSubstr("offset alone")));
  summary.overall = Scope("all tasks", {{0.025, -0.02, 0.07}, 2, 1, {}, {}});
  EXPECT_THAT(ReadOffset(summary)[0], HasSubstr("1 worsened: no lift beyond the labels' offset is shown."));
  summary.overall = Scope("all tasks", {{-0.1, -0.2, -0.01}, 1, 5, {}, {}});
  EXPECT_THAT(ReadOffset(summary)[0], HasSubstr("5 worsened: with the offset, re-mixing is a loss."));
  // Without a row that the server gave its offset, the report's own stands for it.
  summary.overall.methods.erase(summary.overall.methods.begin() + 1);
  EXPECT_THAT(ReadOffset(summary)[0], HasSubstr("against the offset alone (label-offset)"));
}

TEST(ReadOffset, AGroupSpeaksWhereTheWholeWasNotAskedByTheseMethods) {
  RunSummary summary;
  summary.overall = Scope("all tasks", {});
  summary.overall.methods.erase(summary.overall.methods.begin() + 3);
  summary.overall.versus.resize(1);
  summary.groups = {Scope("adaptation", {{0.125, 0.02, 0.23}, 5, 0, {}, {}})};
  EXPECT_THAT(ReadOffset(summary)[0],
              AllOf(HasSubstr("C3PO (both)"), HasSubstr("0 worsened on adaptation: so much is beyond")));
}

}  // namespace
}  // namespace c3po
