#ifndef C3PO_TESTS_BENCH_DEVICE_SWEEP_H_
#define C3PO_TESTS_BENCH_DEVICE_SWEEP_H_

#include <cstdint>
#include <vector>

#include "index/search/cuda/index_device.h"

namespace c3po {

struct DeviceSweepOptions {
  std::vector<int> references = {1000, 10000, 100000, 1000000};  // Ascending.
  std::vector<int> batches = {1, 8, 64};                         // Queries of a search.
  int graph_max = 1000000;  // References of a graph; of more only the scan is measured. Linking takes long.
  int dimension = 384;      // all-MiniLM-L6-v2's.
  int k = 12;
  int rounds = 9;  // Of each search; the median is told.
  uint32_t seed = 1;
  bool figures = true;  // False: the device is a model of one, and no time is told.
};

struct DeviceSweepResult {
  double scan_share = 1;     // Of the queries: the device's scan found ExactIndex's neighbors, bit for bit.
  double beam_share = 1;     // The device's beam found HnswIndex's.
  int64_t host_queries = 0;  // Asked of the device and answered by the host.
};

// For each number of references: the same ClusteredVectors in ExactIndex and HnswIndex, with the server's settings, on
// the host and in the device's memory. Prints what a search of each batch takes on both, their ratio, and the share of
// the device's own bandwidth, measured by copies in the same run, that the scan reaches; then for each batch the number
// of references from which on the graph is faster on the device, beside the one that a catalog takes.
DeviceSweepResult SweepDevice(IndexDevice& device, const DeviceSweepOptions& options);

}  // namespace c3po

#endif  // C3PO_TESTS_BENCH_DEVICE_SWEEP_H_
