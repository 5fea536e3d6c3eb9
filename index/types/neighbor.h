#ifndef C3PO_INDEX_TYPES_NEIGHBOR_H_
#define C3PO_INDEX_TYPES_NEIGHBOR_H_

#include <string>
#include <vector>

namespace c3po {

// One result of a neighbor search.
struct Neighbor {
  std::string reference_id;
  float distance = 0;  // Euclidean between unit-length vectors: [0, 2].
};

// The references with one answer that are nearest to a query.
struct AnswerNeighbors {
  std::string answer;
  std::vector<Neighbor> nearest;  // at least one, by ascending distance
};

}  // namespace c3po

#endif  // C3PO_INDEX_TYPES_NEIGHBOR_H_
