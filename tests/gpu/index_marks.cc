#include "tests/gpu/index_marks.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "index/search/cuda/device_index.h"
#include "tests/bench/clustered_vectors.h"
#include "tests/bench/value_or_exit.h"

namespace c3po {
namespace {

struct IndexSizes {
  int dimension, scanned_few, scanned_many, graph, queries;
};

// As many as the largest index holds.
class Vectors {
 public:
  Vectors(int count, int dimension) : dimension_(static_cast<size_t>(dimension)) {
    ClusteredVectors source(dimension, count, /*seed=*/3, /*stream=*/0);
    values_.reserve(static_cast<size_t>(count) * dimension_);
    for (int i = 0; i < count; ++i) {
      const std::vector<float> next = source.Next();
      values_.insert(values_.end(), next.begin(), next.end());
    }
  }
  absl::Span<const float> operator[](int64_t i) const {
    return {&values_[static_cast<size_t>(i) * dimension_], dimension_};
  }

 private:
  size_t dimension_;
  std::vector<float> values_;
};

// One query at a time. Each is a vector of the index, which has to be found first.
std::vector<double> SearchTimes(const DeviceIndex& index, const Vectors& vectors, int queries, double* found) {
  std::mt19937 random(4);
  std::vector<double> seconds;
  int right = 0;
  for (int i = 0; i < queries; ++i) {
    const auto label = static_cast<int64_t>(random() % index.size());
    std::vector<LabeledDistance> nearest;
    seconds.push_back(Seconds([&] { nearest = ValueOrExit(index.Search(vectors[label], 10)); }));
    right += !nearest.empty() && nearest[0].label == label;
  }
  if (!index.on_device()) Fail("the index is not searched on the device");
  *found = static_cast<double>(right) / queries;
  return seconds;
}

void MeasureScan(IndexDevice* device, const Vectors& vectors, const IndexSizes& sizes, int count, double mark_ms,
                 MarksTable& table) {
  auto exact = std::make_unique<ExactIndex>(sizes.dimension);
  std::vector<LabeledVector> list;
  for (int i = 0; i < count; ++i) {
    OkOrExit(exact->Add(i, vectors[i]));
    list.push_back({i, vectors[i]});
  }
  const auto index = ValueOrExit(DeviceIndex::Create(device, exact, list));
  double found = 0;
  const std::vector<double> seconds = SearchTimes(*index, vectors, sizes.queries, &found);
  if (found < 1) Fail("a scan did not find the vector that it was asked for");
  const bool halves = count >= DeviceIndex::kHalvesFrom;
  table.Row(absl::StrCat("scan of ", count, " x ", sizes.dimension, halves ? ", float16" : ", float32"), seconds,
            (halves ? 2.0 : 4.0) * count * sizes.dimension, mark_ms);
}

void MeasureGraph(IndexDevice* device, const Vectors& vectors, const IndexSizes& sizes, double seconds_max,
                  double mark_ms, MarksTable& table) {
  const HnswOptions options;
  auto graph = ValueOrExit(HnswIndex::Create(sizes.dimension, options));
  int count = 0;
  double taken = 0;
  while (count < sizes.graph && taken < seconds_max) {
    taken += Seconds([&] {
      for (const int end = std::min(count + 500, sizes.graph); count < end; ++count) {
        OkOrExit(graph->Add(count, vectors[count]));
      }
    });
  }
  const auto index = ValueOrExit(DeviceIndex::Create(device, graph, options));
  double found = 0;
  const std::vector<double> seconds = SearchTimes(*index, vectors, sizes.queries, &found);
  if (found < 0.9) Fail(absl::StrFormat("the graph found %.0f %% of its own vectors", 100 * found));
  table.Row(absl::StrCat("graph beam at ", count, count < sizes.graph ? " (no more were linked in time)" : "", ", ef ",
                         options.ef_search),
            seconds, 0, mark_ms);
}

}  // namespace

void MeasureIndex(const MarksDevice& device, bool tiny, double graph_seconds, MarksTable& table) {
  const IndexSizes sizes = tiny ? IndexSizes{24, 400, 1000, 300, 5} : IndexSizes{384, 100'000, 1'000'000, 100'000, 200};
  const Vectors vectors(sizes.scanned_many, sizes.dimension);
  const auto memory =
      ValueOrExit(IndexDevice::Open(device.runtime, device.index_kernels, int64_t{tiny ? 1 : 16} << 30));
  MeasureScan(memory.get(), vectors, sizes, sizes.scanned_few, 0.060, table);
  MeasureScan(memory.get(), vectors, sizes, sizes.scanned_many, 0.450, table);
  MeasureGraph(memory.get(), vectors, sizes, graph_seconds, 0.400, table);
}

}  // namespace c3po
