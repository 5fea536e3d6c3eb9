#include "server/rpc/convert.h"

#include <gtest/gtest.h>

#include <string>

#include "index/base/utf8.h"
#include "server/rpc/wire.h"

namespace c3po {
namespace {

TEST(ReportToProto, IsNoLargerThanMessagesMayBeWhateverItsNeighborsHold) {
  OptimizationReport report;
  report.settings.method = Method::kKernelRegression;
  const std::string character = "\xe2\x82\xac";  // Three bytes: a cut falls inside one.
  std::string prompt;
  while (prompt.size() < 256 << 10) prompt += character;
  for (int i = 0; i < 64; ++i) {
    NeighborReport neighbor;
    neighbor.prompt = prompt;
    neighbor.answer = "x" + prompt;
    report.neighbors.push_back(neighbor);
  }
  report.neighbors.back().answer = " short";
  const v1::OptimizationReport proto = ReportToProto(report);
  EXPECT_LE(proto.ByteSizeLong(), kAnswerBytesMax);
  ASSERT_EQ(proto.neighbors_size(), 64);
  for (const std::string& text : {proto.neighbors(0).prompt(), proto.neighbors(0).answer()}) {
    EXPECT_TRUE(IsValidUtf8(text));
    EXPECT_GE(text.size(), (16u << 10) - 2);
    EXPECT_EQ(text.substr(text.size() - 3), "…");
  }
  EXPECT_EQ(proto.neighbors(63).answer(), " short");
}

}  // namespace
}  // namespace c3po
