#include "tests/bench/index_sweep.h"

#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "index/search/distance.h"
#include "index/search/exact_index.h"
#include "index/search/hnsw_index.h"
#include "index/search/reference_catalog.h"
#include "tests/bench/clustered_vectors.h"
#include "tests/bench/markdown_table.h"
#include "tests/bench/timing.h"
#include "tests/bench/value_or_exit.h"

namespace c3po {
namespace {

// Of the allocator, room for growth included. 0 under a sanitizer, which has an allocator of its own.
size_t AllocatedBytes() {
  const struct mallinfo2 info = mallinfo2();
  return info.uordblks + info.hblkhd;
}

struct Built {
  std::unique_ptr<NeighborIndex> index;
  double seconds = 0;  // Of making it and of Add, without making the vectors.
  double bytes = 0;
};

Built Build(const std::function<std::unique_ptr<NeighborIndex>()>& make, ClusteredVectors vectors, int count) {
  constexpr int kChunk = 1000;
  const size_t before = AllocatedBytes();
  Built built;
  built.seconds = Seconds([&] { built.index = make(); });
  for (int begin = 0; begin < count; begin += kChunk) {
    std::vector<std::vector<float>> chunk;
    for (int i = begin; i < std::min(count, begin + kChunk); ++i) chunk.push_back(vectors.Next());
    built.seconds += Seconds([&] {
      for (size_t i = 0; i < chunk.size(); ++i) OkOrExit(built.index->Add(begin + static_cast<int64_t>(i), chunk[i]));
    });
  }
  built.bytes = static_cast<double>(AllocatedBytes() - before);
  return built;
}

struct Answers {
  std::vector<double> seconds;                      // [queries]
  std::vector<std::vector<LabeledDistance>> found;  // [queries][k]
};

Answers SearchAll(const NeighborIndex& index, const std::vector<std::vector<float>>& queries, int k) {
  Answers answers;
  for (const std::vector<float>& query : queries) {
    std::vector<LabeledDistance> found;
    answers.seconds.push_back(Seconds([&] { found = ValueOrExit(index.Search(query, k)); }));
    answers.found.push_back(std::move(found));
  }
  return answers;
}

// Distances are compared, not labels: of several at one distance any is right.
double Recall(const Answers& exact, const Answers& graph) {
  int64_t wanted = 0, hits = 0;
  for (size_t q = 0; q < exact.found.size(); ++q) {
    if (graph.found[q].size() != exact.found[q].size()) {
      OkOrExit(absl::InternalError(absl::StrFormat("query %d: the graph found %d neighbors, of %d", q,
                                                   graph.found[q].size(), exact.found[q].size())));
    }
    wanted += static_cast<int64_t>(exact.found[q].size());
    for (const LabeledDistance& each : graph.found[q]) {
      hits += each.distance <= exact.found[q].back().distance;
      for (const LabeledDistance& same : exact.found[q]) {
        if (same.label != each.label || same.distance == each.distance) continue;
        OkOrExit(absl::InternalError(absl::StrFormat("query %d, label %d: the graph's distance is %g, the exact one %g",
                                                     q, each.label, each.distance, same.distance)));
      }
    }
  }
  return static_cast<double>(hits) / static_cast<double>(wanted);
}

void PrintRow(MarkdownTable& table, int references, const ClusteredVectors& vectors, const std::string& index,
              const Built& built, const Answers& answers, const std::string& recall) {
  table.Row({absl::StrCat(references), absl::StrCat(vectors.topics()), index, absl::StrFormat("%.3g", built.seconds),
             absl::StrFormat("%.3g", built.seconds / references * 1e6),
             absl::StrFormat("%.3f", Quantile(answers.seconds, 0.5) * 1e3),
             absl::StrFormat("%.3f", Quantile(answers.seconds, 0.99) * 1e3), recall,
             absl::StrFormat("%.0f", built.bytes / references)});
}

}  // namespace

double SweepReferences(const IndexSweepOptions& options) {
  const CatalogOptions catalog;
  MarkdownTable table(
      absl::StrFormat("Vectors of %d dimensions in topics, %d queries that are not among them, k = %d; graph: m %d, "
                      "ef_construction %d, ef_search %d. The server's index is in bold.",
                      options.dimension, options.queries, options.k, catalog.hnsw.m, catalog.hnsw.ef_construction,
                      catalog.hnsw.ef_search),
      {"references", "topics", "index", "building, s", "us per reference", "search p50, ms", "p99, ms",
       absl::StrCat("recall@", options.k), "bytes per reference"});
  double least = 1;
  for (const int references : options.references) {
    const ClusteredVectors vectors(options.dimension, references, options.seed, /*stream=*/0);
    ClusteredVectors others(options.dimension, references, options.seed, /*stream=*/1);
    std::vector<std::vector<float>> queries;
    for (int i = 0; i < options.queries; ++i) queries.push_back(others.Next());

    const bool exact_serves = references <= catalog.exact_references_max;
    Answers expected;
    {
      const Built exact = Build([&] { return std::make_unique<ExactIndex>(options.dimension); }, vectors, references);
      expected = SearchAll(*exact.index, queries, options.k);
      PrintRow(table, references, vectors, exact_serves ? "**exact**" : "exact", exact, expected, "1");
    }
    const Built graph =
        Build([&] { return ValueOrExit(HnswIndex::Create(options.dimension, catalog.hnsw)); }, vectors, references);
    const Answers found = SearchAll(*graph.index, queries, options.k);
    const double recall = Recall(expected, found);
    PrintRow(table, references, vectors, exact_serves ? "HNSW" : "**HNSW**", graph, found,
             absl::StrFormat("%.4f", recall));
    least = std::min(least, recall);
  }
  return least;
}

}  // namespace c3po
