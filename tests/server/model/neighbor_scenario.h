#ifndef C3PO_TESTS_SERVER_MODEL_NEIGHBOR_SCENARIO_H_
#define C3PO_TESTS_SERVER_MODEL_NEIGHBOR_SCENARIO_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "server/model/moe_model.h"
#include "tests/server/model/tiny_model.h"

namespace c3po {

// What tests of neighbors' losses ask of a tiny golden model: random neighbors of every shape.

inline std::vector<int32_t> RandomTokens(std::mt19937& rng, int count, int vocabulary) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng() % vocabulary);
  return tokens;
}

inline Pathway RandomPathway(std::mt19937& rng, int layers, int experts) {
  Pathway pathway(layers, experts);
  for (int l = 0; l < layers; ++l) {
    double sum = 0;
    for (float& w : pathway.Row(l)) sum += w = std::uniform_real_distribution<float>(0.05f, 1)(rng);
    for (float& w : pathway.Row(l)) w = static_cast<float>(w / sum);
  }
  return pathway;
}

struct Scenario {
  std::string model;
  ApplicationRule rule = ApplicationRule::kEveryNewToken;
  SurrogateLoss loss = SurrogateLoss::kAnswer;
  std::vector<int> layers;
  bool one_token_choices = false;  // where the LM head is read at the choices' tokens only
  int prompt_positions = 1;        // of the prompts, which have 1, 5 and 12 tokens
  bool remembers = true;           // what the first critical layer's experts give
  double trust = 0;                // weight of the trust region
};

inline void PrintTo(const Scenario& s, std::ostream* out) {
  *out << s.model << " rule " << int(s.rule) << " loss " << int(s.loss) << " first layer " << s.layers.front() << " of "
       << s.layers.size() << ", prompt positions " << s.prompt_positions << (s.remembers ? "" : ", nothing remembered")
       << (s.one_token_choices ? ", one token" : "");
  if (s.trust > 0) *out << ", trust " << s.trust;
}

// Five neighbors of which two pairs, or three where choices have one token, have the same choices and different
// answers, whatever their order: choices of one to four tokens, some of which share a beginning. The third one has
// other choices, the fourth an answer alone.
inline std::vector<NeighborCase> MakePairCases(std::mt19937& rng, const MoeModel& model, const Scenario& scenario) {
  const int vocabulary = model.shape().vocabulary_size;
  const std::vector<int32_t> shared = RandomTokens(rng, 2, vocabulary);
  std::vector<std::vector<int32_t>> choices = {{3}, {7}, {9}};
  for (int length : {2, 1}) {
    if (scenario.one_token_choices) break;
    choices[static_cast<size_t>(length)] = shared;
    for (const int32_t token : RandomTokens(rng, length, vocabulary))
      choices[static_cast<size_t>(length)].push_back(token);
  }
  std::vector<std::vector<int32_t>> turned = choices;
  std::rotate(turned.begin(), turned.begin() + 1, turned.end());
  std::vector<std::vector<int32_t>> others = {{3}, {7}}, alone = {RandomTokens(rng, 3, vocabulary)};
  if (scenario.one_token_choices) alone = others;
  return {{"a", RandomTokens(rng, 5, vocabulary), choices, 2, 0.9},
          {"b", RandomTokens(rng, 12, vocabulary), turned, 2, 0.4},  // answers as choices[0]
          {"c", RandomTokens(rng, 2, vocabulary), others, 1, 0.3},
          {"d", RandomTokens(rng, 4, vocabulary), alone, 0, 0.5},
          {"e", RandomTokens(rng, 1, vocabulary), choices, 0, 0.7}};
}

// Three neighbors: prompts of 1, 5 and 12 tokens; one with a single answer, one with four choices of several lengths of
// which two share a beginning, one with one-token choices.
inline std::vector<NeighborCase> MakeCases(std::mt19937& rng, const MoeModel& model, const Scenario& scenario) {
  if (scenario.loss == SurrogateLoss::kPairs) return MakePairCases(rng, model, scenario);
  const int vocabulary = model.shape().vocabulary_size;
  std::vector<NeighborCase> cases(3);
  cases[0] = {"a", RandomTokens(rng, 5, vocabulary), {RandomTokens(rng, 3, vocabulary)}, 0, 0.9};
  cases[1] = {"b", RandomTokens(rng, 12, vocabulary), {}, 2, 0.4};
  const std::vector<int32_t> shared = RandomTokens(rng, 2, vocabulary);
  for (int length : {1, 2, 3, 4}) {
    std::vector<int32_t> choice = length >= 3 ? shared : std::vector<int32_t>();
    const std::vector<int32_t> rest = RandomTokens(rng, length - static_cast<int>(choice.size()), vocabulary);
    choice.insert(choice.end(), rest.begin(), rest.end());
    cases[1].continuations.push_back(choice);
  }
  cases[2] = {"c",
              RandomTokens(rng, 1, vocabulary),
              {RandomTokens(rng, 1, vocabulary), RandomTokens(rng, 1, vocabulary)},
              1,
              0.7};
  if (scenario.loss == SurrogateLoss::kAnswer) {
    for (NeighborCase& c : cases) c = {c.reference_id, c.prompt, {c.continuations[c.gold]}, 0, c.kernel_weight};
  }
  if (scenario.one_token_choices) {
    for (NeighborCase& c : cases) {
      c = {c.reference_id, c.prompt, {{3}, {7}, {int32_t(rng() % vocabulary)}}, int(rng() % 3), c.kernel_weight};
    }
  }
  return cases;
}

// The cases with their states, to make an objective from.
inline ObjectiveSpec MakeSpec(std::mt19937& rng, MoeModel& model, const Scenario& scenario) {
  ObjectiveSpec spec{MakeCases(rng, model, scenario), {}, scenario.layers, scenario.rule, scenario.loss};
  if (!scenario.remembers) spec.remembered_bytes_max = 0;
  spec.trust = scenario.trust;
  for (const NeighborCase& neighbor : spec.cases) {
    auto prepared = model.PrepareNeighbor(neighbor, {scenario.layers.front(), scenario.prompt_positions});
    EXPECT_TRUE(prepared.ok()) << prepared.status();
    spec.states.push_back(prepared->state);
  }
  return spec;
}

inline RoutingOverride MakeRouting(std::mt19937& rng, const MoeModel& model, const Scenario& scenario) {
  RoutingOverride routing{OverrideKindOf(scenario.rule), scenario.layers,
                          RandomPathway(rng, static_cast<int>(scenario.layers.size()), model.shape().experts)};
  if (routing.kind == RoutingOverride::Kind::kLogitShift) {
    for (float& shift : routing.values.weights) shift = std::normal_distribution<float>(0, 0.5f)(rng);
  }
  return routing;
}

}  // namespace c3po

#endif  // C3PO_TESTS_SERVER_MODEL_NEIGHBOR_SCENARIO_H_
