#include "index/base/nearest_name.h"

#include <string>

#include "gtest/gtest.h"

namespace c3po {
namespace {

TEST(NearestName, ProposesWhatOneSlipAwayWasMeant) {
  const std::vector<std::string> names = {"ask", "calibrate", "refs", "report"};
  EXPECT_EQ(NearestName("calibate", names), "calibrate");
  EXPECT_EQ(NearestName("calibrrate", names), "calibrate");
  EXPECT_EQ(NearestName("Calibrate", names), "calibrate");
  EXPECT_EQ(NearestName("clairbate", names), "calibrate");
  EXPECT_EQ(NearestName("resf", names), "refs");
  EXPECT_EQ(NearestName("erfs", names), "refs");
  EXPECT_EQ(NearestName("aks", names), "ask");
  EXPECT_EQ(NearestName("reprot", names), "report");
}

TEST(NearestName, ProposesNothingFarFetched) {
  EXPECT_EQ(NearestName("frobnicate", {"ask", "calibrate"}), "");
  EXPECT_EQ(NearestName("", {"ask"}), "");
  EXPECT_EQ(NearestName("ask", {}), "");
  EXPECT_EQ(NearestName(std::string(1 << 20, 'a'), {"ask"}), "");
}

TEST(NearestName, TakesTheFirstOfEquals) { EXPECT_EQ(NearestName("abd", {"abc", "abe"}), "abc"); }

}  // namespace
}  // namespace c3po
