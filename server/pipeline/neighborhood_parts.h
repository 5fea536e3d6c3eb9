#ifndef C3PO_SERVER_PIPELINE_NEIGHBORHOOD_PARTS_H_
#define C3PO_SERVER_PIPELINE_NEIGHBORHOOD_PARTS_H_

#include <vector>

#include "absl/types/span.h"
#include "server/pipeline/neighborhood.h"
#include "server/types/neighborhood_objective.h"

namespace c3po {

// Neighbors in parts, each of which finds a pathway (`neighborhoods`). All pure.

// Deals neighbors, nearest first, into `parts` >= 1 like cards, so that each has near and far ones: which part each is
// of, in [0, parts). With `balance` the neighbors of one answer are dealt first, then those of the next one: two parts
// then differ by one at most in their neighbors of an answer, and in all.
std::vector<int> DealIntoParts(absl::Span<const WeightedReference* const> neighbors, int parts, bool balance);

// What each part's objective is made of: the cases of `all`, with the states that there are, that are of the part,
// which `part_of` says of each. A part without a case is left out. `part_of` may be longer than the cases; empty: one
// part.
std::vector<ObjectiveSpec> SpecsOfParts(const ObjectiveSpec& all, absl::Span<const int> part_of);

// The sum of the kernel values of its cases.
double WeightOf(const ObjectiveSpec& spec);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_NEIGHBORHOOD_PARTS_H_
