// Indexes in a GPU's memory against those on the host (device_sweep.h).
//   c3po_bench_index_device [--references 1000,10000,...] [--graph-max 1000000] [--batches 1,8,64] [--k 12]
//                           [--dimension 384] [--rounds 9]
// Without libtorch, so that it and its libraries are small enough to be carried to a machine with a GPU. No time
// decides the exit status; whether both sides find the same does.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "index/base/cuda/library.h"
#include "tests/bench/device_sweep.h"
#include "tests/bench/value_or_exit.h"

namespace c3po {
namespace {

constexpr double kBeamShareMin = 0.999;  // Of the queries; ties may differ.

// Most of what the GPU has left; another program may be there.
std::unique_ptr<IndexDevice> OpenGpu() {
  cuda::Runtime* const runtime = ValueOrExit(cuda::OpenRuntime());
  const auto* const kernels = ValueOrExit(cuda::OpenLibrary()->Kernels<cuda::IndexKernels>("c3po_index_kernels"));
  int64_t free_bytes = 0, bytes = 0;
  if (const cuda::Error error = runtime->MemoryInfo(&free_bytes, &bytes)) OkOrExit(absl::UnavailableError(error));
  return ValueOrExit(IndexDevice::Open(runtime, kernels, free_bytes / 10 * 8));
}

int Main(int argc, char** argv) {
  DeviceSweepOptions options;
  CLI::App app("What finding neighbors takes in a GPU's memory and on the host");
  const auto numbers = [&app](const std::string& name, std::vector<int>& values, int most, const std::string& what) {
    app.add_option(name, values, what)->delimiter(',')->check(CLI::Range(1, most))->capture_default_str();
  };
  const auto number = [&app](const std::string& name, int& value, int most, const std::string& what) {
    app.add_option(name, value, what)->check(CLI::Range(1, most))->capture_default_str();
  };
  numbers("--references", options.references, 10'000'000,
          "sizes of the index; a million takes some 5 GB of the host's");
  number("--graph-max", options.graph_max, 10'000'000, "references of a graph; linking takes a millisecond each");
  numbers("--batches", options.batches, 4096, "queries of a search");
  number("--k", options.k, 1024, "neighbors");
  number("--dimension", options.dimension, 1 << 14, "of the vectors");
  number("--rounds", options.rounds, 1000, "of each search; the median is told");
  CLI11_PARSE(app, argc, argv);
  std::sort(options.references.begin(), options.references.end());

  const std::unique_ptr<IndexDevice> device = OpenGpu();
  const DeviceSweepResult result = SweepDevice(*device, options);
  if (result.scan_share == 1 && result.beam_share >= kBeamShareMin && result.host_queries == 0) return 0;
  std::fprintf(stderr,
               "the same neighbors as on the host: for %.4f of the scans' queries (all wanted) and %.4f of the graphs' "
               "(%g wanted); %lld queries were answered by the host (0 wanted)\n",
               result.scan_share, result.beam_share, kBeamShareMin, static_cast<long long>(result.host_queries));
  return 1;
}

}  // namespace
}  // namespace c3po

int main(int argc, char** argv) { return c3po::Main(argc, argv); }
