#include "tests/bench/model_work.h"

#include <algorithm>
#include <utility>

#include "server/pathway/pathway_optimizer.h"
#include "tests/bench/value_or_exit.h"
#include "tests/server/pathway/one_unit.h"

namespace c3po {

std::vector<int32_t> RandomTokens(std::mt19937& random, int count, int vocabulary_size) {
  std::vector<int32_t> tokens(count);
  for (int32_t& token : tokens) token = static_cast<int32_t>(random() % vocabulary_size);
  return tokens;
}

OwnedSegment SequenceTokens(int64_t first_slot, int64_t slots, int start, std::vector<int32_t> tokens) {
  OwnedSegment segment;
  segment.kv = {{first_slot, slots}};
  segment.start = start;
  segment.tokens = std::move(tokens);
  return segment;
}

std::vector<NeighborCase> RandomNeighbors(std::mt19937& random, const NeighborSizes& sizes, int vocabulary_size) {
  std::vector<NeighborCase> cases(sizes.neighbors);
  for (NeighborCase& neighbor : cases) {
    neighbor.prompt = RandomTokens(random, sizes.prompt_tokens, vocabulary_size);
    for (int i = 0; i < sizes.continuations; ++i) {
      neighbor.continuations.push_back(RandomTokens(random, sizes.answer_tokens, vocabulary_size));
    }
  }
  return cases;
}

std::vector<int> LastLayers(const ModelShape& shape, int count) {
  std::vector<int> layers;
  for (int l = std::max(0, shape.moe_layers - count); l < shape.moe_layers; ++l) layers.push_back(l);
  return layers;
}

ObjectiveSpec PrepareNeighbors(MoeModel& model, std::vector<NeighborCase> cases, std::vector<int> critical_layers,
                               SurrogateLoss loss) {
  ObjectiveSpec spec;
  spec.cases = std::move(cases);
  spec.critical_layers = std::move(critical_layers);
  spec.loss = loss;
  for (const auto& preparation : ValueOrExit(model.NewPreparations(spec.cases, {spec.critical_layers.front()}))) {
    ValueOrExit(preparation->Advance(PiecewiseWork::kToTheEnd));
    spec.states.push_back(preparation->state());
  }
  return spec;
}

Pathway PathwayOf(MoeModel& model, const std::vector<int32_t>& prompt) {
  OwnedSegment segment = SequenceTokens(0, static_cast<int64_t>(prompt.size()), 0, prompt);
  segment.want_capture = true;
  return ValueOrExit(RunSegments(model, {segment})).front().capture.pathway;
}

std::vector<double> Descend(MoeModel& model, const ObjectiveSpec& neighbors, const Pathway& initial, int core_experts,
                            int steps) {
  const auto objective = ValueOrExit(model.NewObjective(neighbors));
  OptimizationProblem problem;
  problem.critical_layers = neighbors.critical_layers;
  problem.core_experts = core_experts < initial.experts ? core_experts : 0;
  problem.initial = initial.Rows(neighbors.critical_layers);
  problem.objective = objective.get();
  const auto optimizer = ValueOrExit(MakeGradientDescent(problem, {steps, 0.1, StepRule::kAdam}));
  while (!ValueOrExit(OneUnit(*optimizer))) {
  }
  return optimizer->losses();
}

}  // namespace c3po
