#ifndef C3PO_TESTS_INDEX_CUDA_MADE_UP_INDEXES_H_
#define C3PO_TESTS_INDEX_CUDA_MADE_UP_INDEXES_H_

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "index/search/cuda/device_index.h"
#include "tests/index/store/random_reference.h"

namespace c3po {

using Found = std::vector<LabeledDistance>;
using Vectors = std::map<int64_t, std::vector<float>>;

inline std::vector<LabeledVector> ListOf(const Vectors& vectors) {
  std::vector<LabeledVector> list;
  for (const auto& [label, vector] : vectors) list.push_back({label, vector});
  return list;
}

inline std::unique_ptr<ExactIndex> ExactOf(const Vectors& vectors, int dimension) {
  auto exact = std::make_unique<ExactIndex>(dimension);
  for (const auto& [label, vector] : vectors) EXPECT_TRUE(exact->Add(label, vector).ok());
  return exact;
}

inline std::unique_ptr<DeviceIndex> OnDevice(IndexDevice* device, const Vectors& vectors, int dimension,
                                             int64_t halves_from = 0) {
  auto exact = ExactOf(vectors, dimension);
  auto index = DeviceIndex::Create(device, exact, ListOf(vectors), halves_from);
  EXPECT_TRUE(index.ok()) << index.status();
  return *std::move(index);
}

inline std::unique_ptr<HnswIndex> GraphOf(const Vectors& vectors, int dimension, const HnswOptions& options) {
  auto graph = *HnswIndex::Create(dimension, options);
  for (const auto& [label, vector] : vectors) EXPECT_TRUE(graph->Add(label, vector).ok());
  return graph;
}

inline std::unique_ptr<DeviceIndex> GraphOnDevice(IndexDevice* device, const Vectors& vectors, int dimension,
                                                  const HnswOptions& options) {
  auto graph = GraphOf(vectors, dimension, options);
  auto index = DeviceIndex::Create(device, graph, options);
  EXPECT_TRUE(index.ok()) << index.status();
  return *std::move(index);
}

inline Vectors RandomVectors(std::mt19937& random, int count, int dimension) {
  Vectors vectors;
  while (std::ssize(vectors) < count) {
    vectors[static_cast<int64_t>(random())] = RandomUnitVector(random, dimension);
  }
  return vectors;
}

inline std::vector<float> Matrix(std::mt19937& random, int count, int dimension) {
  std::vector<float> matrix;
  for (int i = 0; i < count; ++i) {
    const std::vector<float> row = RandomUnitVector(random, dimension);
    matrix.insert(matrix.end(), row.begin(), row.end());
  }
  return matrix;
}

inline HnswOptions SmallGraph() {
  HnswOptions options;
  options.m = 8;
  options.ef_construction = 40;
  options.ef_search = 32;
  return options;
}

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_CUDA_MADE_UP_INDEXES_H_
