// The beam search against HnswIndex, which asks hnswlib: the same neighbors of the same graph.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "index/search/cuda/beam_search.h"
#include "index/search/hnsw_index.h"
#include "tests/host_cuda/device_array.h"
#include "tests/host_cuda/kernel_run.h"
#include "tests/index/store/random_reference.h"

namespace c3po {
namespace {

using cuda::FoundRow;
using host_cuda::DeviceArray;

// A graph laid out as beam_search.h says. NaN in padding and behind the last row.
struct GraphLayout {
  explicit GraphLayout(const HnswGraph& graph)
      : row_stride(cuda::RoundUp(graph.dimension, 4)),
        rows(host_cuda::UnknownValues<float>((graph.labels.size() + 2) * static_cast<size_t>(row_stride))),
        admitted((graph.labels.size() + 31) / 32, 0u),
        links(graph.labels.size() * 2 * static_cast<size_t>(graph.m), cuda::kNoLink),
        upper_links(UpperLists(graph) * static_cast<size_t>(graph.m), cuda::kNoLink) {
    size_t next = 0;
    uint32_t lists = 0;
    for (size_t node = 0; node < graph.labels.size(); ++node) {
      std::copy_n(graph.vectors.begin() + static_cast<std::ptrdiff_t>(node) * graph.dimension, graph.dimension,
                  rows.data() + node * static_cast<size_t>(row_stride));
      if (graph.removed[node] == 0) admitted[node / 32] |= 1u << (node % 32);
      upper_lists.push_back(lists);
      for (int layer = 0; layer <= graph.layers[node]; ++layer) {
        const uint32_t count = graph.links[next++];
        const size_t place = layer == 0 ? node * 2 * static_cast<size_t>(graph.m)
                                        : (lists + static_cast<size_t>(layer) - 1) * static_cast<size_t>(graph.m);
        std::copy_n(graph.links.begin() + static_cast<std::ptrdiff_t>(next), count,
                    (layer == 0 ? links : upper_links).data() + place);
        next += count;
      }
      lists += static_cast<uint32_t>(graph.layers[node]);
    }
  }
  static size_t UpperLists(const HnswGraph& graph) {
    size_t lists = 1;
    for (const int32_t layer : graph.layers) lists += static_cast<size_t>(layer);
    return lists;
  }

  int row_stride;
  std::vector<float> rows;
  std::vector<uint32_t> admitted, links, upper_lists, upper_links;
};

class GraphOnDevice {
 public:
  explicit GraphOnDevice(const HnswGraph& graph) : GraphOnDevice(graph, GraphLayout(graph)) {}
  GraphOnDevice(const HnswGraph& graph, const GraphLayout& layout)
      : row_stride_(layout.row_stride),
        rows_(layout.rows),
        labels_(graph.labels),
        admitted_(layout.admitted),
        links_(layout.links),
        upper_lists_(layout.upper_lists),
        upper_links_(layout.upper_links) {
    args_.rows = rows_.data();
    args_.admitted = admitted_.data();
    args_.labels = labels_.data();
    args_.node_count = static_cast<int>(graph.labels.size());
    args_.row_stride = args_.query_stride = row_stride_;
    args_.dimension = graph.dimension;
    args_.links = links_.data();
    args_.upper_lists = upper_lists_.data();
    args_.upper_links = upper_links_.data();
    args_.links_max = 2 * graph.m;
    args_.entry_node = graph.entry_node;
    args_.top_layer = graph.top_layer;
    args_.visited_words = cuda::BeamVisitedWords(args_.node_count);
  }

  struct Result {
    std::vector<std::vector<LabeledDistance>> found;
    std::vector<uint32_t> counts;
  };
  Result Search(const std::vector<std::vector<float>>& queries, int ef, int k, bool visited_in_global = false) const {
    std::vector<float> padded = host_cuda::UnknownValues<float>(queries.size() * static_cast<size_t>(row_stride_));
    for (size_t i = 0; i < queries.size(); ++i) {
      std::copy(queries[i].begin(), queries[i].end(), padded.data() + i * static_cast<size_t>(row_stride_));
    }
    const DeviceArray<float> device_queries(padded);
    const DeviceArray<FoundRow> found(queries.size() * static_cast<size_t>(k));
    const DeviceArray<uint32_t> counts(queries.size());
    const DeviceArray<uint32_t> visited(queries.size() * static_cast<size_t>(args_.visited_words));
    cuda::BeamArgs args = args_;
    args.queries = device_queries.data();
    args.query_count = static_cast<int>(queries.size());
    args.ef = ef;
    args.k = k;
    args.found = found.data();
    args.counts = counts.data();
    args.visited = visited_in_global ? visited.data() : nullptr;
    EXPECT_EQ(cuda::LaunchBeamSearch(args, nullptr), nullptr);
    static_cast<void>(visited.Values());
    Result result;
    result.counts = counts.Values();
    const std::vector<FoundRow> rows = found.Values();
    for (size_t i = 0; i < queries.size(); ++i) {
      std::vector<LabeledDistance>& of_query = result.found.emplace_back();
      for (size_t j = 0; j < static_cast<size_t>(k); ++j) {
        const FoundRow& row = rows[i * static_cast<size_t>(k) + j];
        if (row.squared == cuda::kNoNeighbor) continue;
        float squared = 0;
        std::memcpy(&squared, &row.squared, sizeof(squared));
        of_query.push_back({row.label, std::sqrt(squared)});
      }
    }
    return result;
  }

 private:
  const int row_stride_;
  DeviceArray<float> rows_;
  DeviceArray<int64_t> labels_;
  DeviceArray<uint32_t> admitted_, links_, upper_lists_, upper_links_;
  cuda::BeamArgs args_;
};

struct Sample {
  std::unique_ptr<HnswIndex> index;
  std::vector<std::vector<float>> queries;
};

Sample RandomSample(uint32_t seed, int count, int dimension, const HnswOptions& options, int queries) {
  std::mt19937 random(seed);
  Sample sample;
  sample.index = *HnswIndex::Create(dimension, options);
  for (int i = 0; i < count; ++i) {
    EXPECT_TRUE(sample.index->Add(int64_t{i} * 7919 % count, RandomUnitVector(random, dimension)).ok());
  }
  for (int i = 0; i < queries; ++i) sample.queries.push_back(RandomUnitVector(random, dimension));
  return sample;
}

HnswOptions Options(int m, int ef_search) {
  HnswOptions options;
  options.m = m;
  options.ef_construction = std::max(m, 40);
  options.ef_search = ef_search;
  return options;
}

TEST(BeamSearchKernel, FindsWhatHnswlibFindsInEveryOrderOfThreads) {
  for (const auto& [m, ef, dimension] : {std::tuple(16, 48, 24), {4, 20, 33}, {2, 12, 8}, {40, 64, 20}}) {
    SCOPED_TRACE(testing::Message() << "m " << m << ", ef " << ef << ", dimension " << dimension);
    const Sample sample = RandomSample(static_cast<uint32_t>(m), 1500, dimension, Options(m, ef), 6);
    const GraphOnDevice graph(*sample.index->CopyGraph());
    for (uint64_t seed = 0; seed < 2; ++seed) {
      host_cuda::SetSeed(seed);
      const GraphOnDevice::Result result = graph.Search(sample.queries, ef, 10, /*visited_in_global=*/seed == 1);
      for (size_t i = 0; i < sample.queries.size(); ++i) {
        EXPECT_EQ(result.found[i], *sample.index->Search(sample.queries[i], 10)) << "query " << i << ", seed " << seed;
        EXPECT_EQ(result.counts[i], static_cast<uint32_t>(ef));
      }
    }
  }
}

TEST(BeamSearchKernel, PassesThroughTombstonesAndReturnsNone) {
  const Sample sample = RandomSample(70, 1200, 16, Options(8, 32), 8);
  for (int label = 0; label < 1200; label += 3) ASSERT_TRUE(sample.index->Remove(label).ok());
  const GraphOnDevice graph(*sample.index->CopyGraph());
  const auto candidates = static_cast<int>(HnswIndex::Candidates(10, Options(8, 32), 1200, sample.index->size()));
  EXPECT_EQ(candidates, 48);
  const GraphOnDevice::Result result = graph.Search(sample.queries, candidates, 10);
  for (size_t i = 0; i < sample.queries.size(); ++i) {
    EXPECT_EQ(result.found[i], *sample.index->Search(sample.queries[i], 10)) << "query " << i;
    EXPECT_LT(result.counts[i], static_cast<uint32_t>(candidates));
    for (const LabeledDistance& each : result.found[i]) EXPECT_NE(each.label % 3, 0);
  }
}

TEST(BeamSearchKernel, EqualDistancesAreOrderedByLabel) {
  std::mt19937 random(71);
  const auto index = *HnswIndex::Create(8, Options(8, 64));
  const std::vector<float> vector = RandomUnitVector(random, 8);
  for (const int64_t label : {5, 3, 9, 1, 7}) ASSERT_TRUE(index->Add(label, vector).ok());
  for (int64_t label = 10; label < 200; ++label) ASSERT_TRUE(index->Add(label, RandomUnitVector(random, 8)).ok());
  const GraphOnDevice graph(*index->CopyGraph());
  const GraphOnDevice::Result result = graph.Search({vector}, 64, 7);
  EXPECT_EQ(result.found[0], *index->Search(vector, 7));
  EXPECT_EQ(result.found[0][0], (LabeledDistance{1, 0.0f}));
  EXPECT_EQ(result.found[0][4], (LabeledDistance{9, 0.0f}));
}

TEST(BeamSearchKernel, OneNodeAndFewerNodesThanWanted) {
  for (const int count : {1, 2, 5}) {
    const Sample sample = RandomSample(static_cast<uint32_t>(80 + count), count, 8, Options(4, 16), 2);
    const GraphOnDevice::Result result = GraphOnDevice(*sample.index->CopyGraph()).Search(sample.queries, 16, 8);
    for (size_t i = 0; i < 2; ++i) EXPECT_EQ(result.found[i], *sample.index->Search(sample.queries[i], 8));
    EXPECT_THAT(result.counts, testing::Each(static_cast<uint32_t>(count)));
  }
}

TEST(BeamSearchKernel, ArgumentsOutOfRangeAreRefused) {
  cuda::BeamArgs args;
  EXPECT_STREQ(cuda::LaunchBeamSearch(args, nullptr), "beam search: ef is out of range");
  args.k = args.ef = 4;
  EXPECT_STREQ(cuda::LaunchBeamSearch(args, nullptr), "beam search: links out of range");
  args.links_max = 32;
  EXPECT_STREQ(cuda::LaunchBeamSearch(args, nullptr), "beam search: nodes out of range");
}

}  // namespace
}  // namespace c3po
