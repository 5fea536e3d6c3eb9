#include "index/base/cuda/device.h"
#include "index/search/cuda/scatter.h"

namespace c3po::cuda {
namespace {

constexpr int kThreads = 128;

C3PO_KERNEL void C3PO_BOUNDS(kThreads, 4) Scatter(ScatterArgs args) {
  const WordRun run = args.runs[device::Block()];
  for (uint32_t i = static_cast<uint32_t>(device::Thread()); i < run.count; i += kThreads)
    run.to[i] = args.words[run.from + i];
}

}  // namespace

Error LaunchScatter(const ScatterArgs& args, Stream stream) {
  return device::Launch(Scatter, device::Grid{args.run_count}, kThreads, 0, stream, args);
}

}  // namespace c3po::cuda
