// Finding a query's neighbors: against embedding the references again for every query, as the public implementation
// does (reembedding.h), and how it grows with the number of references (index_sweep.h).
//   c3po_bench_retrieval [--references 100,1000,...] [--queries 500] [--k 12] [--dimension 384] [--recall-min 0.9]
//                        [--texts FILE.jsonl ...] [--text-references 500] [--text-queries 5] [--embedder FOLDER]
// Without --texts the first part is left out. No time decides the exit status; the recall of the graphs does, and
// whether both ways of the first part find the same neighbors.

#include <CLI/CLI.hpp>
#include <cstdio>

#include "server/compute/device.h"
#include "server/config/server_config.h"
#include "tests/bench/index_sweep.h"
#include "tests/bench/reembedding.h"

namespace c3po {
namespace {

int Main(int argc, char** argv) {
  IndexSweepOptions sweep;
  ReembeddingOptions texts;
  texts.embedder = InCacheFolder("models/all-minilm-l6-v2");
  double recall_min = 0.9;
  CLI::App app("What finding a query's neighbors takes");
  app.add_option("--references", sweep.references, "sizes of the index; a million takes some 3 GB")
      ->delimiter(',')
      ->check(CLI::Range(1, 10'000'000))
      ->capture_default_str();
  const auto number = [&app](const std::string& name, int& value, int most, const std::string& what) {
    app.add_option(name, value, what)->check(CLI::Range(1, most))->capture_default_str();
  };
  number("--queries", sweep.queries, 100'000, "of each size");
  number("--k", sweep.k, 10'000, "neighbors");
  number("--dimension", sweep.dimension, 1 << 16, "of the vectors");
  app.add_option("--recall-min", recall_min, "of every graph; below, the exit status is 1")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app.add_option("--texts", texts.texts, "JSONL files with a \"prompt\" in each line")->check(CLI::ExistingFile);
  number("--text-references", texts.references, 1'000'000, "of them, embedded again for every query");
  number("--text-queries", texts.queries, 1'000, "of the others");
  app.add_option("--embedder", texts.embedder, "sentence encoder's folder")
      ->check(CLI::ExistingDirectory)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  SetComputeThreads(0);  // As in the server: libtorch's pool, on which the encoder runs, is left one thread.
  texts.k = sweep.k;
  if (!texts.texts.empty()) CompareWithReembedding(texts);  // First: its files may turn out wrong, and it is short.
  const double recall = SweepReferences(sweep);
  if (recall >= recall_min) return 0;
  std::fprintf(stderr, "--recall-min: %g wanted, the least measured is %.4f\n", recall_min, recall);
  return 1;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) { return c3po::Main(argc, argv); }
