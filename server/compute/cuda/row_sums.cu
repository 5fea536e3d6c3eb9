#include "index/base/cuda/device.h"
#include "server/compute/cuda/row_sums.h"

namespace c3po::cuda {
namespace {

constexpr int kThreads = 64;  // Few: a column is a chain of additions, so many blocks are what hides its latency.

C3PO_KERNEL void C3PO_BOUNDS(kThreads, 1) SumRows(RowSumsArgs args) {
  const int column = device::Block() * kThreads + device::Thread();
  if (column >= args.columns) return;
  double sum = args.sums[column];
  for (int r = 0; r < args.rows; ++r) sum += static_cast<double>(args.x[r * args.stride + column]);
  args.sums[column] = sum;
}

}  // namespace

Error LaunchRowSums(const RowSumsArgs& args, Stream stream) {
  const device::Grid grid{(args.columns + kThreads - 1) / kThreads};
  return device::Launch(SumRows, grid, kThreads, 0, stream, args);
}

}  // namespace c3po::cuda
