#ifndef C3PO_INDEX_TYPES_NEIGHBOR_H_
#define C3PO_INDEX_TYPES_NEIGHBOR_H_

#include <string>

namespace c3po {

// One result of a neighbor search.
struct Neighbor {
  std::string reference_id;
  float distance = 0;  // Euclidean between unit-length embeddings: [0, 2].
};

}  // namespace c3po

#endif  // C3PO_INDEX_TYPES_NEIGHBOR_H_
