#ifndef C3PO_TESTS_BENCH_INDEX_SWEEP_H_
#define C3PO_TESTS_BENCH_INDEX_SWEEP_H_

#include <cstdint>
#include <vector>

namespace c3po {

struct IndexSweepOptions {
  std::vector<int> references = {100, 1000, 10000, 100000, 1000000};
  int dimension = 384;  // all-MiniLM-L6-v2's.
  int k = 12;
  int queries = 500;
  uint32_t seed = 1;
};

// For each number of references: ExactIndex and HnswIndex with the server's settings over the same ClusteredVectors,
// and which of the two a ReferenceCatalog takes. Prints building time, search time, memory and recall, a row when it is
// known. Recall is the share of ExactIndex's k nearest that HnswIndex finds, over the queries; as near as the k-th
// counts as found. Returns the least one. Ends the program when the graph returns fewer than k, or a distance that is
// not the exact one of its label.
double SweepReferences(const IndexSweepOptions& options);

}  // namespace c3po

#endif  // C3PO_TESTS_BENCH_INDEX_SWEEP_H_
