#ifndef C3PO_TESTS_BENCH_MODEL_WORK_H_
#define C3PO_TESTS_BENCH_MODEL_WORK_H_

#include <cstdint>
#include <random>
#include <vector>

#include "server/model/moe_model.h"
#include "tests/server/owned_segment.h"

namespace c3po {

// The pieces of work that the benchmarks of a model folder time: random tokens, as the time of a pass does not depend
// on what is said (but for which experts are chosen), and the parts of an optimization as a request meets them.

std::vector<int32_t> RandomTokens(std::mt19937& random, int count, int vocabulary_size);

// One sequence whose keys and values lie in slots [first_slot, first_slot + slots); its tokens begin at `start`. The
// logits of the last one are wanted, as for any token that is sampled.
OwnedSegment SequenceTokens(int64_t first_slot, int64_t slots, int start, std::vector<int32_t> tokens);

struct NeighborSizes {
  int neighbors = 3;
  int prompt_tokens = 64;
  int continuations = 1;  // The first is the answer.
  int answer_tokens = 1;  // Of each continuation.
};
std::vector<NeighborCase> RandomNeighbors(std::mt19937& random, const NeighborSizes& sizes, int vocabulary_size);

// The last `count` MoE layers, or all of fewer.
std::vector<int> LastLayers(const ModelShape& shape, int count);

// Neighbors with the states that a reference never recomputes.
ObjectiveSpec PrepareNeighbors(MoeModel& model, std::vector<NeighborCase> cases, std::vector<int> critical_layers,
                               SurrogateLoss loss);

// The routers' weights at the last token of `prompt`, which is written to the first slots of the KV cache.
Pathway PathwayOf(MoeModel& model, const std::vector<int32_t>& prompt);

// One neighborhood gradient descent, from the making of the objective to the last step: `steps` Adam steps at 0.1 from
// `initial` ([moe_layers, experts]). core_experts: 0 or more than there are: all. Returns the neighbors' loss at the
// start and after each step.
std::vector<double> Descend(MoeModel& model, const ObjectiveSpec& neighbors, const Pathway& initial, int core_experts,
                            int steps);

}  // namespace c3po

#endif  // C3PO_TESTS_BENCH_MODEL_WORK_H_
