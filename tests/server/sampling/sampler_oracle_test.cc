// The sampler against a naive one that follows the header word by word: full sort, long double, nothing shared but the
// random number. And its distribution against the probabilities, by chi-square.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "server/sampling/philox.h"
#include "server/sampling/sampler.h"

namespace c3po {
namespace {

struct TokenProbability {
  int32_t id;
  float logit;
  long double probability;
};

void Normalize(std::vector<TokenProbability>& tokens) {
  long double sum = 0;
  for (const auto& token : tokens) sum += token.probability;
  for (auto& token : tokens) token.probability /= sum;
}

// What is left after the filters, with probabilities that sum to 1, in order of ids.
std::vector<TokenProbability> NaiveDistribution(std::vector<float> logits, const SamplingParams& params,
                                                const std::vector<int32_t>& context) {
  for (int32_t id : std::set<int32_t>(context.begin(), context.end())) {
    const double logit = logits[id];
    logits[id] = static_cast<float>(logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty);
  }
  const float largest = *std::max_element(logits.begin(), logits.end());
  std::vector<TokenProbability> tokens;
  for (size_t i = 0; i < logits.size(); ++i) {
    tokens.push_back({static_cast<int32_t>(i), logits[i],
                      std::exp((static_cast<long double>(logits[i]) - largest) / params.temperature)});
  }
  std::stable_sort(tokens.begin(), tokens.end(), [](const auto& a, const auto& b) { return a.logit > b.logit; });
  Normalize(tokens);
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < tokens.size()) tokens.resize(params.top_k);
  Normalize(tokens);
  if (params.top_p < 1) {
    long double cumulative = 0;
    size_t count = 0;
    while (count < tokens.size() && cumulative < params.top_p) cumulative += tokens[count++].probability;
    tokens.resize(std::max<size_t>(count, 1));
  }
  while (tokens.back().probability < params.min_p * tokens.front().probability) tokens.pop_back();
  Normalize(tokens);
  std::sort(tokens.begin(), tokens.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  return tokens;
}

int32_t NaiveSample(const std::vector<float>& logits, const SamplingParams& params, const std::vector<int32_t>& context,
                    int64_t position) {
  const std::vector<TokenProbability> tokens = NaiveDistribution(logits, params, context);
  const long double u = PhiloxUniform(params.seed, position);
  long double cumulative = 0;
  for (const auto& token : tokens) {
    cumulative += token.probability;
    if (cumulative > u) return token.id;
  }
  return tokens.back().id;
}

struct Case {
  std::vector<float> logits;
  std::vector<int32_t> context;
  SamplingParams params;
  int64_t position = 0;
};

// Small and large vocabularies, smooth logits and coarse ones (many ties), each option on in half of the cases.
Case RandomCase(std::mt19937_64& random) {
  std::uniform_real_distribution<double> unit(0, 1);
  const auto coin = [&] { return unit(random) < 0.5; };
  Case result;
  const int vocabulary = coin() ? 1 + static_cast<int>(random() % 40) : 1 + static_cast<int>(random() % 3000);
  std::normal_distribution<float> normal(0, coin() ? 1 : 6);
  const bool coarse = coin();
  for (int i = 0; i < vocabulary; ++i) {
    const float logit = normal(random);
    result.logits.push_back(coarse ? std::round(logit) : logit);
  }
  for (size_t i = random() % 50; i > 0; --i) result.context.push_back(random() % vocabulary);
  result.params.temperature = std::exp(unit(random) * 4 - 2.5);
  if (coin()) result.params.top_k = 1 + random() % (coin() ? 20 : 4000);
  if (coin()) result.params.top_p = 0.001 + 0.998 * unit(random);
  if (coin()) result.params.min_p = 0.5 * unit(random) * unit(random);
  if (coin()) result.params.repetition_penalty = 0.5 + 1.5 * unit(random);
  result.params.seed = random();
  result.position = random() % 100000;
  return result;
}

TEST(SamplerOracle, AgreesWithANaiveSamplerOnRandomCases) {
  for (uint64_t seed = 1; seed <= 6000; ++seed) {
    std::mt19937_64 random(seed);
    const Case c = RandomCase(random);
    const auto token = Sample(c.logits, c.params, c.context, c.position);
    ASSERT_TRUE(token.ok()) << "case seed " << seed << ": " << token.status();
    ASSERT_EQ(token->token_id, NaiveSample(c.logits, c.params, c.context, c.position))
        << "case seed " << seed << ", vocabulary " << c.logits.size() << ", temperature " << c.params.temperature
        << ", top_k " << c.params.top_k << ", top_p " << c.params.top_p << ", min_p " << c.params.min_p
        << ", repetition_penalty " << c.params.repetition_penalty;
  }
}

TEST(SamplerOracle, LogprobsAreThoseOfTheLogitsAsGiven) {
  for (uint64_t seed = 1; seed <= 500; ++seed) {
    std::mt19937_64 random(seed);
    Case c = RandomCase(random);
    c.params.logprobs = random() % (kLogprobsMax + 1);
    const auto token = Sample(c.logits, c.params, c.context, c.position);
    ASSERT_TRUE(token.ok()) << token.status();

    long double sum = 0;
    for (float logit : c.logits) sum += std::exp(static_cast<long double>(logit));
    std::vector<int32_t> order(c.logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return c.logits[a] > c.logits[b]; });
    const auto logprob = [&](int32_t id) { return static_cast<double>(c.logits[id] - std::log(sum)); };
    EXPECT_NEAR(token->logprob, logprob(token->token_id), 1e-5) << "case seed " << seed;
    ASSERT_EQ(token->top_logprobs.size(), std::min<size_t>(c.params.logprobs, c.logits.size())) << "case seed " << seed;
    for (size_t i = 0; i < token->top_logprobs.size(); ++i) {
      ASSERT_EQ(token->top_logprobs[i].token_id, order[i]) << "case seed " << seed << ", rank " << i;
      EXPECT_NEAR(token->top_logprobs[i].logprob, logprob(order[i]), 1e-5) << "case seed " << seed;
    }
  }
}

// Some tokens alone may be chosen: as though the others had a logit of -infinity. Here they are left out altogether,
// which keeps the order of the rest.
TEST(SamplerOracle, ChoosesAmongAllowedTokensAsThoughThereWereNoOthers) {
  for (uint64_t seed = 1; seed <= 3000; ++seed) {
    std::mt19937_64 random(seed);
    Case c = RandomCase(random);
    if (random() % 4 == 0) c.params.temperature = 0;
    c.params.logprobs = static_cast<int>(random() % 8) - 1;
    std::vector<uint32_t> allowed((c.logits.size() + 31) / 32);
    std::vector<int32_t> ids;
    const uint64_t one_in = 1 + random() % 20;
    const size_t surely = random() % c.logits.size();
    for (size_t id = 0; id < c.logits.size(); ++id) {
      if (id != surely && random() % one_in > 0) continue;
      allowed[id / 32] |= 1U << (id % 32);
      ids.push_back(static_cast<int32_t>(id));
    }
    Case left = c;
    left.logits.clear();
    left.context.clear();
    for (size_t i = 0; i < ids.size(); ++i) {
      left.logits.push_back(c.logits[ids[i]]);
      if (std::count(c.context.begin(), c.context.end(), ids[i]) > 0) left.context.push_back(static_cast<int32_t>(i));
      if (random() % 10 > 0) continue;
      const float bias = static_cast<float>(random() % 100) / 50 - 1;
      c.params.logit_bias.push_back({ids[i], bias});
      left.params.logit_bias.push_back({static_cast<int32_t>(i), bias});
    }
    const auto token = Sample(c.logits, c.params, c.context, c.position, allowed);
    const auto expected = Sample(left.logits, left.params, left.context, left.position);
    ASSERT_TRUE(token.ok() && expected.ok()) << "case seed " << seed << ": " << token.status() << expected.status();
    ASSERT_EQ(token->token_id, ids[expected->token_id]) << "case seed " << seed;
    EXPECT_NEAR(token->logprob, expected->logprob, 1e-5) << "case seed " << seed;
    ASSERT_EQ(token->top_logprobs.size(), expected->top_logprobs.size()) << "case seed " << seed;
    for (size_t i = 0; i < token->top_logprobs.size(); ++i) {
      ASSERT_EQ(token->top_logprobs[i].token_id, ids[expected->top_logprobs[i].token_id]) << "case seed " << seed;
      EXPECT_NEAR(token->top_logprobs[i].logprob, expected->top_logprobs[i].logprob, 1e-5) << "case seed " << seed;
    }
  }
}

TEST(SamplerOracle, RefusesBitsThatAreNotOfTheVocabularyOrAllowNothing) {
  const std::vector<float> logits(40, 1.0f);
  const SamplingParams params;
  EXPECT_EQ(Sample(logits, params, {}, 0, std::vector<uint32_t>{1}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Sample(logits, params, {}, 0, std::vector<uint32_t>{0, 0}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Sample(logits, params, {}, 0, std::vector<uint32_t>{0, 0xffffff00}).status().code(),
            absl::StatusCode::kInvalidArgument);  // Beyond the vocabulary.
  EXPECT_EQ(Sample(logits, params, {}, 0, std::vector<uint32_t>{0, 0x80})->token_id, 39);
}

// Pearson's statistic of counts against expected probabilities, over the cells with probability > 0.
double ChiSquare(const std::vector<int>& counts, const std::vector<double>& probabilities) {
  const double total = std::accumulate(counts.begin(), counts.end(), 0.0);
  double statistic = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    if (probabilities[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " is filtered";
      continue;
    }
    const double expected = total * probabilities[i];
    statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  return statistic;
}

struct Filtered {
  std::string name;
  SamplingParams params;
  size_t tokens_left;
  double critical;  // Upper 1e-4 quantile of chi-square with tokens_left - 1 degrees of freedom.
};

TEST(SamplerOracle, DrawsFollowTheDistributionAlongPositionsAndAlongSeeds) {
  const std::vector<float> logits = {0.5, 2.0, -1.0, 1.5, 0.0, 1.0, -0.5, 1.9};
  std::vector<Filtered> cases(4);
  cases[0] = {"all", {}, 8, 29.88};
  cases[1] = {"top_k", {}, 4, 21.11};
  cases[1].params.top_k = 4;
  cases[2] = {"top_p", {}, 5, 23.51};
  cases[2].params.top_p = 0.9;
  cases[3] = {"min_p", {}, 3, 18.42};
  cases[3].params.min_p = 0.4;
  constexpr int kDraws = 100000;
  for (Filtered& c : cases) {
    c.params.temperature = 0.9;
    c.params.seed = 20250101;
    std::vector<double> probabilities(logits.size(), 0.0);
    const std::vector<TokenProbability> tokens = NaiveDistribution(logits, c.params, {});
    for (const auto& token : tokens) probabilities[token.id] = token.probability;
    ASSERT_EQ(tokens.size(), c.tokens_left) << c.name;
    std::vector<int> by_position(logits.size()), by_seed(logits.size());
    for (int i = 0; i < kDraws; ++i) {
      ++by_position[Sample(logits, c.params, {}, i)->token_id];
      SamplingParams params = c.params;
      params.seed = i;
      ++by_seed[Sample(logits, params, {}, 7)->token_id];
    }
    EXPECT_LT(ChiSquare(by_position, probabilities), c.critical) << c.name;
    EXPECT_LT(ChiSquare(by_seed, probabilities), c.critical) << c.name;
  }
}

TEST(SamplerOracle, NeighboringPositionsAreIndependent) {
  const std::vector<float> logits(4, 1.0f);
  SamplingParams params;
  params.temperature = 1;
  params.seed = 3;
  std::vector<int> pairs(16);
  for (int i = 0; i < 50000; ++i) {
    ++pairs[4 * Sample(logits, params, {}, 2 * i)->token_id + Sample(logits, params, {}, 2 * i + 1)->token_id];
  }
  EXPECT_LT(ChiSquare(pairs, std::vector<double>(16, 1.0 / 16)), 44.26);  // 15 degrees of freedom, 1e-4.
}

}  // namespace
}  // namespace c3po
