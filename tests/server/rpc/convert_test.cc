#include "server/rpc/convert.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

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

TEST(RoutePieces, CutBetweenTokensAndHoldEachOnce) {
  RoutedExperts routes{5, 16, 8, {}, {}};
  routes.ResizeTo(5 + 5000);
  for (size_t i = 0; i < routes.ids.size(); ++i) {
    routes.ids[i] = static_cast<int32_t>(i % 61);
    routes.weights[i] = static_cast<float>(i);
  }
  const std::vector<v1::RoutedExperts> pieces = RoutePieces(routes);
  EXPECT_GT(pieces.size(), 2u);
  size_t at = 0;
  uint32_t position = 5;
  for (const v1::RoutedExperts& piece : pieces) {
    EXPECT_LE(piece.ByteSizeLong(), size_t{1} << 20);
    EXPECT_EQ(piece.first_position(), position);
    EXPECT_EQ(piece.layers(), 16u);
    EXPECT_EQ(piece.experts(), 8u);
    ASSERT_EQ(static_cast<uint32_t>(piece.ids_size()), piece.tokens() * 16 * 8);
    ASSERT_EQ(piece.weights_size(), piece.ids_size());
    for (int i = 0; i < piece.ids_size(); ++i, ++at) {
      ASSERT_EQ(piece.ids(i), static_cast<uint32_t>(routes.ids[at]));
      ASSERT_EQ(piece.weights(i), routes.weights[at]);
    }
    position += piece.tokens();
  }
  EXPECT_EQ(at, routes.ids.size());
  EXPECT_TRUE(RoutePieces(RoutedExperts()).empty());
}

TEST(ExpertsFromProto, KnowsANumberThatWasNotGivenFromZero) {
  v1::ScoreRequest request;
  EXPECT_FALSE(ExpertsFromProto(request)->per_token.has_value());
  EXPECT_FALSE(ExpertsFromProto(request)->return_routed);
  request.set_experts_per_token(0);
  request.set_return_routed_experts(true);
  EXPECT_EQ(ExpertsFromProto(request)->per_token, 0);
  EXPECT_TRUE(ExpertsFromProto(request)->return_routed);
  request.set_experts_per_token(4000000000);
  EXPECT_EQ(ExpertsFromProto(request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(FormFromProto, TakesEachFormAndRefusesNone) {
  using Kind = AnswerForm::Kind;
  v1::StructuredOutput proto;
  EXPECT_EQ(FormFromProto(proto).status().message(), "structured_output: one of its forms must be set");
  proto.set_json_object(true);
  EXPECT_EQ(*FormFromProto(proto), (AnswerForm{Kind::kJsonObject, "", {}}));
  proto.set_json_object(false);
  EXPECT_EQ(FormFromProto(proto).status().code(), absl::StatusCode::kInvalidArgument);
  proto.set_json_schema("{}");
  EXPECT_EQ(*FormFromProto(proto), (AnswerForm{Kind::kJsonSchema, "{}", {}}));
  proto.set_regex("a");
  EXPECT_EQ(*FormFromProto(proto), (AnswerForm{Kind::kRegex, "a", {}}));
  proto.set_grammar("root ::= \"a\"");
  EXPECT_EQ(*FormFromProto(proto), (AnswerForm{Kind::kGrammar, "root ::= \"a\"", {}}));
  proto.mutable_one_of()->add_texts("a");
  proto.mutable_one_of()->add_texts("b");
  EXPECT_EQ(*FormFromProto(proto), (AnswerForm{Kind::kOneOf, "", {"a", "b"}}));
}

TEST(StatsPage, PagesHoldEveryCollectionOnceAndNoMoreBytesThanTheyMay) {
  std::map<std::string, v1::CollectionStats> all;
  for (int i = 0; i < 1000; ++i) {
    const std::string name = std::to_string(i) + std::string(static_cast<size_t>(i % 120), 'x');
    all[name].set_collection(name);
    all[name].set_references(static_cast<uint64_t>(i) + 1);
  }
  std::vector<std::string> seen;
  std::string token;
  int pages = 0;
  do {
    v1::GetStatsResponse page;
    StatsPage(all, token, 4096, &page);
    size_t bytes = 0;
    for (const v1::CollectionStats& stats : page.collections()) {
      seen.push_back(stats.collection());
      bytes += stats.ByteSizeLong();
    }
    EXPECT_GT(page.collections_size(), 0);
    EXPECT_LE(bytes, 4096U);
    token = page.next_page_token();
    ++pages;
  } while (!token.empty());
  EXPECT_GT(pages, 10);
  ASSERT_EQ(seen.size(), all.size());
  EXPECT_TRUE(std::equal(seen.begin(), seen.end(), all.begin(),
                         [](const std::string& name, const auto& entry) { return name == entry.first; }));
}

TEST(StatsPage, OneThatIsLargerThanAPageIsAPage) {
  std::map<std::string, v1::CollectionStats> all;
  for (const std::string name : {"a", "b"}) all[name].set_collection(name);
  v1::GetStatsResponse page;
  StatsPage(all, "", 1, &page);
  ASSERT_EQ(page.collections_size(), 1);
  EXPECT_EQ(page.next_page_token(), "a");
}

TEST(PriorToProto, TellsTheFirstOfManyReferencesThatWereHeldApart) {
  CollectionPrior prior;
  prior.validation_references = 20000;
  for (int i = 0; i < 20000; ++i) prior.validation_reference_ids.push_back(std::string(64, 'x') + std::to_string(i));
  const v1::PriorInfo info = PriorToProto(prior, "");
  EXPECT_EQ(info.validation_references(), 20000U);
  EXPECT_EQ(info.validation_reference_ids_size(), 10000);
  EXPECT_LE(info.ByteSizeLong(), kAnswerBytesMax);
}

}  // namespace
}  // namespace c3po
