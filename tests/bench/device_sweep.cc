#include "tests/bench/device_sweep.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "index/search/cuda/device_index.h"
#include "index/search/exact_index.h"
#include "index/search/hnsw_index.h"
#include "index/search/reference_catalog.h"
#include "tests/bench/clustered_vectors.h"
#include "tests/bench/crossover.h"
#include "tests/bench/markdown_table.h"
#include "tests/bench/timing.h"
#include "tests/bench/value_or_exit.h"

namespace c3po {
namespace {

using Answers = std::vector<std::vector<LabeledDistance>>;

constexpr char kUntold[] = "–";

// Bytes read and written in a second by copies on the device.
double CopiedBytesPerSecond(IndexDevice& device) {
  constexpr int kCopies = 10;
  cuda::Runtime& runtime = device.runtime();
  const int64_t bytes = std::min<int64_t>(int64_t{1} << 28, (device.budget_bytes() - device.bytes_in_use()) / 4);
  const IndexMemory from = ValueOrExit(device.Allocate(bytes)), to = ValueOrExit(device.Allocate(bytes));
  cuda::Stream stream = nullptr;
  cuda::Event begin = nullptr, end = nullptr;
  float milliseconds = 0;
  const auto check = [&](cuda::Error error) { OkOrExit(device.Check(error)); };
  check(runtime.NewStream(&stream));
  check(runtime.NewEvent(&begin, /*timed=*/true));
  check(runtime.NewEvent(&end, /*timed=*/true));
  for (int i = -1; i < kCopies; ++i) {
    if (i == 0) check(runtime.Record(stream, begin));  // The first one is not counted.
    check(runtime.CopyOnDevice(stream, to.as<void>(), from.as<void>(), bytes));
  }
  check(runtime.Record(stream, end));
  check(runtime.Synchronize(stream));
  check(runtime.Milliseconds(begin, end, &milliseconds));
  check(runtime.DeleteEvent(begin));
  check(runtime.DeleteEvent(end));
  check(runtime.DeleteStream(stream));
  return 2.0 * kCopies * static_cast<double>(bytes) / (static_cast<double>(milliseconds) / 1e3);
}

// What searches of one index take, and what they find, by the size of the batch.
struct Searches {
  std::map<int, double> seconds;
  std::map<int, Answers> found;
};

Searches SearchBatches(const NeighborIndex& index, const std::vector<float>& queries,
                       const DeviceSweepOptions& options) {
  Searches searches;
  for (const int batch : options.batches) {
    const auto rows =
        absl::MakeConstSpan(queries).first(static_cast<size_t>(batch) * static_cast<size_t>(options.dimension));
    searches.found[batch] = ValueOrExit(index.SearchMany(rows, options.k));  // Buffers are made, caches filled.
    std::vector<double> seconds;
    for (int round = 0; round < options.rounds; ++round) {
      seconds.push_back(Seconds([&] { OkOrExit(index.SearchMany(rows, options.k).status()); }));
    }
    searches.seconds[batch] = Median(seconds);
  }
  return searches;
}

// Of the queries: those for which both found the same.
double SameShare(const Searches& a, const Searches& b) {
  double same = 0, all = 0;
  for (const auto& [batch, found] : a.found) {
    for (size_t i = 0; i < found.size(); ++i) same += found[i] == b.found.at(batch)[i] ? 1 : 0;
    all += static_cast<double>(found.size());
  }
  return same / all;
}

// One kind of index on both sides: on the host first, whose index the device's then takes.
struct BothSides {
  Searches host, device;
};

// `rest`: what DeviceIndex::Create takes beside the host's index.
template <class Index, class Rest>
BothSides SearchBoth(IndexDevice& device, std::unique_ptr<Index> index, const Rest& rest,
                     const std::vector<LabeledVector>& vectors, const std::vector<float>& queries,
                     const DeviceSweepOptions& options) {
  for (const LabeledVector& each : vectors) OkOrExit(index->Add(each.label, each.vector));
  BothSides sides;
  sides.host = SearchBatches(*index, queries, options);
  const auto placed = ValueOrExit(DeviceIndex::Create(&device, index, rest));
  sides.device = SearchBatches(*placed, queries, options);
  return sides;
}

BothSides SweepScan(IndexDevice& device, const std::vector<LabeledVector>& vectors, const std::vector<float>& queries,
                    const DeviceSweepOptions& options) {
  return SearchBoth(device, std::make_unique<ExactIndex>(options.dimension), vectors, vectors, queries, options);
}

BothSides SweepGraph(IndexDevice& device, const std::vector<LabeledVector>& vectors, const std::vector<float>& queries,
                     const DeviceSweepOptions& options) {
  const HnswOptions hnsw = CatalogOptions().hnsw;
  auto graph = ValueOrExit(HnswIndex::Create(options.dimension, hnsw));
  return SearchBoth(device, std::move(graph), hnsw, vectors, queries, options);
}

class Report {
 public:
  Report(IndexDevice& device, const DeviceSweepOptions& options)
      : options_(options),
        bytes_per_second_(options.figures ? CopiedBytesPerSecond(device) : 0),
        table_(
            absl::StrFormat("%s%s; vectors of %d dimensions, k = %d, medians of %d rounds, ms a search of a batch",
                            device.properties().name,
                            options.figures ? absl::StrFormat(", %.2f TB/s copied", bytes_per_second_ / 1e12) : "",
                            options.dimension, options.k, options.rounds),
            {"references", "queries", "search", "on the host", "on the device", "host / device", "of its bandwidth"}) {}

  void Rows(int references, const std::string& search, const BothSides& sides, bool scan) {
    for (const int batch : options_.batches) {
      const double host = sides.host.seconds.at(batch), device = sides.device.seconds.at(batch);
      // A scan reads every vector once at least, large sets in float16.
      const double element = references >= DeviceIndex::kHalvesFrom ? 2 : 4;
      const double floor = element * options_.dimension * references / bytes_per_second_;
      table_.Row({absl::StrCat(references), absl::StrCat(batch), search, Told("%.3f", host * 1e3),
                  Told("%.3f", device * 1e3), Told("%.1f", host / device),
                  scan ? Told("%.0f %%", 100 * floor / device) : kUntold});
      ScanAndBeam& at = Times(batch, references);
      (scan ? at.scan_seconds : at.beam_seconds) = device;
    }
  }

  // Of the sizes at which both were measured.
  void PrintCrossovers() const {
    const int64_t taken = CatalogOptions().device_references_max;
    for (const auto& [batch, all] : times_) {
      std::vector<ScanAndBeam> both;
      for (const ScanAndBeam& at : all) {
        if (at.beam_seconds > 0) both.push_back(at);
      }
      const std::optional<double> crossover = options_.figures ? Crossover(both) : std::nullopt;
      std::printf(
          "On the device, batches of %d: the graph is faster than the scan from %s references on; a catalog "
          "takes it beyond %lld (device_references_max).\n",
          batch, crossover ? absl::StrFormat("about %.2g", *crossover).c_str() : kUntold,
          static_cast<long long>(taken));
    }
  }

 private:
  std::string Told(const char* format, double value) const {
    if (!options_.figures) return kUntold;
    char text[64];
    std::snprintf(text, sizeof(text), format, value);
    return text;
  }
  ScanAndBeam& Times(int batch, int references) {
    std::vector<ScanAndBeam>& all = times_[batch];
    if (all.empty() || all.back().references != references) all.push_back({static_cast<double>(references), 0, 0});
    return all.back();
  }

  const DeviceSweepOptions& options_;
  const double bytes_per_second_;
  MarkdownTable table_;
  std::map<int, std::vector<ScanAndBeam>> times_;
};

}  // namespace

DeviceSweepResult SweepDevice(IndexDevice& device, const DeviceSweepOptions& options) {
  DeviceSweepResult result;
  const int64_t host_queries = device.counts().host_queries;
  Report report(device, options);
  for (const int references : options.references) {
    ClusteredVectors made(options.dimension, references, options.seed, /*stream=*/0);
    ClusteredVectors others(options.dimension, references, options.seed, /*stream=*/1);
    std::vector<std::vector<float>> kept;
    std::vector<LabeledVector> vectors;
    kept.reserve(static_cast<size_t>(references));
    for (int i = 0; i < references; ++i) kept.push_back(made.Next());
    for (int i = 0; i < references; ++i) vectors.push_back({i, kept[static_cast<size_t>(i)]});
    std::vector<float> queries;
    for (int i = 0; i < *std::max_element(options.batches.begin(), options.batches.end()); ++i) {
      const std::vector<float> query = others.Next();
      queries.insert(queries.end(), query.begin(), query.end());
    }
    const BothSides scan = SweepScan(device, vectors, queries, options);
    result.scan_share = std::min(result.scan_share, SameShare(scan.host, scan.device));
    report.Rows(references, "scan", scan, /*scan=*/true);
    if (references > options.graph_max) continue;
    const BothSides graph = SweepGraph(device, vectors, queries, options);
    result.beam_share = std::min(result.beam_share, SameShare(graph.host, graph.device));
    report.Rows(references, "graph", graph, /*scan=*/false);
  }
  report.PrintCrossovers();
  result.host_queries = device.counts().host_queries - host_queries;
  return result;
}

}  // namespace c3po
