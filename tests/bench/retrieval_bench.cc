// Finding a query's neighbors: against embedding the references again for every query, as the public implementation
// does (reembedding.h), and how it grows with the number of references (index_sweep.h).
//   c3po_bench_retrieval [--references 100,1000,...] [--queries 500] [--k 12] [--dimension 384] [--recall-min 0.9]
//                        [--texts FILE.jsonl ...] [--text-references 500] [--text-queries 5] [--embedder FOLDER]
//                        [--device cuda [--batches 1,8,64] [--graph-max 1000000]]
// Without --texts the first part is left out. --device cuda compares indexes in a GPU's memory with those on the host
// (device_sweep.h) in place of the growth. No time decides the exit status; the recall of the graphs does, whether both
// ways of the first part find the same neighbors, and whether host and GPU do.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "index/base/cuda/library.h"
#include "server/compute/device.h"
#include "server/config/server_config.h"
#include "tests/bench/device_sweep.h"
#include "tests/bench/index_sweep.h"
#include "tests/bench/reembedding.h"
#include "tests/bench/value_or_exit.h"

namespace c3po {
namespace {

constexpr double kBeamShareMin = 0.999;  // Of the queries; ties may differ.

// Most of what the GPU has left; another program may be there.
std::unique_ptr<IndexDevice> OpenGpu() {
  cuda::Runtime* const runtime = ValueOrExit(cuda::OpenRuntime());
  OkOrExit(cuda::OpenLibrary().status());
  const auto* const kernels = ValueOrExit(cuda::OpenLibrary()->Kernels<cuda::IndexKernels>("c3po_index_kernels"));
  int64_t free_bytes = 0, bytes = 0;
  if (const cuda::Error error = runtime->MemoryInfo(&free_bytes, &bytes)) OkOrExit(absl::UnavailableError(error));
  return ValueOrExit(IndexDevice::Open(runtime, kernels, free_bytes / 10 * 8));
}

int CompareOnGpu(const DeviceSweepOptions& options) {
  const std::unique_ptr<IndexDevice> device = OpenGpu();
  const DeviceSweepResult result = SweepDevice(*device, options);
  if (result.scan_share == 1 && result.beam_share >= kBeamShareMin && result.host_queries == 0) return 0;
  std::fprintf(
      stderr,
      "--device cuda: the same neighbors as on the host for %.4f of the scans' queries (all wanted) and %.4f of "
      "the graphs' (%g wanted); %lld queries were answered by the host (0 wanted)\n",
      result.scan_share, result.beam_share, kBeamShareMin, static_cast<long long>(result.host_queries));
  return 1;
}

int Main(int argc, char** argv) {
  IndexSweepOptions sweep;
  ReembeddingOptions texts;
  texts.embedder = InCacheFolder("models/all-minilm-l6-v2");
  DeviceSweepOptions on_device;
  std::string device = "cpu";
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
  app.add_option("--device", device, "cuda: indexes in a GPU's memory against those on the host")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--batches", on_device.batches, "queries of a search there")
      ->delimiter(',')
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  number("--graph-max", on_device.graph_max, 10'000'000,
         "references of a graph there; linking takes a millisecond each");
  CLI11_PARSE(app, argc, argv);

  SetComputeThreads(0);  // As in the server: libtorch's pool, on which the encoder runs, is left one thread.
  texts.k = sweep.k;
  if (!texts.texts.empty()) CompareWithReembedding(texts);  // First: its files may turn out wrong, and it is short.
  if (device == "cuda") {
    on_device.references = sweep.references;
    std::sort(on_device.references.begin(), on_device.references.end());
    on_device.k = sweep.k;
    on_device.dimension = sweep.dimension;
    return CompareOnGpu(on_device);
  }
  const double recall = SweepReferences(sweep);
  if (recall >= recall_min) return 0;
  std::fprintf(stderr, "--recall-min: %g wanted, the least measured is %.4f\n", recall_min, recall);
  return 1;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) { return c3po::Main(argc, argv); }
