#include "server/rpc/doors/optimization_choice.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "index/types/optimization_terms.h"

namespace c3po {
namespace {

using Pairs = std::vector<std::pair<std::string, std::string>>;

absl::StatusOr<v1::OptimizationOptions> Choice(const Pairs& pairs) {
  std::multimap<grpc::string_ref, grpc::string_ref> metadata;
  for (const auto& [key, value] : pairs) metadata.emplace(key, value);
  return OptimizationFromMetadata(metadata);
}

TEST(OptimizationFromMetadata, SetsNothingWhereNothingIsChosen) {
  const auto options = Choice({{"user-agent", "tonic"}, {"traceparent", "00-1"}});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->ByteSizeLong(), 0U);
}

TEST(OptimizationFromMetadata, TakesCollectionAndEveryMethodByWordAndByName) {
  for (const Term<Method>& term : TermsOf<Method>()) {
    for (const char* word : {term.flag, term.name}) {
      const auto options = Choice({{"c3po-collection", "law"}, {"c3po-method", word}});
      ASSERT_TRUE(options.ok()) << options.status();
      EXPECT_EQ(options->collection(), "law");
      EXPECT_EQ(static_cast<int>(options->method()), term.number) << word;
    }
  }
}

TEST(OptimizationFromMetadata, TakesTheGenerationThatTheRequestIsToSee) {
  const auto options = Choice({{"c3po-min-generation", "4294967296"}});
  ASSERT_TRUE(options.ok()) << options.status();
  EXPECT_EQ(options->min_index_generation(), 4294967296u);
}

TEST(OptimizationFromMetadata, RefusesByTheKeysName) {
  const std::vector<std::pair<Pairs, std::string>> wrong = {
      {{{"c3po-method", "magic"}}, "c3po-method: is none of none, ngd"},
      {{{"c3po-method", ""}}, "c3po-method: must not be empty"},
      {{{"c3po-collection", ""}}, "c3po-collection: must not be empty"},
      {{{"c3po-collection", "a"}, {"c3po-collection", "b"}}, "c3po-collection: is given twice"},
      {{{"c3po-min-generation", "soon"}}, "c3po-min-generation: is no number"},
      {{{"c3po-min-generation", "-1"}}, "c3po-min-generation: is no number"},
      {{{"c3po-min-generation", "1"}, {"c3po-min-generation", "2"}}, "c3po-min-generation: is given twice"},
      {{{"c3po-colection", "a"}}, "c3po-colection: is none of"},
  };
  for (const auto& [pairs, message] : wrong) {
    const auto options = Choice(pairs);
    EXPECT_EQ(options.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(options.status().message().substr(0, message.size()), message);
  }
}

TEST(ChooseByModelName, TakesTheModelItselfOrWithACollection) {
  for (const std::string served : {"tiny", "org/tiny@v2"}) {
    v1::OptimizationOptions options;
    EXPECT_TRUE(ChooseByModelName("model", served, served, options).ok());
    EXPECT_FALSE(options.has_collection());
    EXPECT_TRUE(ChooseByModelName("model", served + "@law@eu", served, options).ok());
    EXPECT_EQ(options.collection(), "law@eu");
    EXPECT_TRUE(ChooseByModelName("model", served + "@law@eu", served, options).ok());
    EXPECT_TRUE(absl::IsInvalidArgument(ChooseByModelName("model", served + "@other", served, options)));
    EXPECT_TRUE(absl::IsInvalidArgument(ChooseByModelName("model", served + "@", served, options)));
    for (const std::string& other : {std::string(), served + "2", "x" + served, std::string("@law")})
      EXPECT_EQ(ChooseByModelName("model", other, served, options).message(), "model: the model here is " + served);
  }
}

}  // namespace
}  // namespace c3po
