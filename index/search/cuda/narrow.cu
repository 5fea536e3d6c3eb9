#include "index/base/cuda/device.h"
#include "index/search/cuda/narrow.h"

namespace c3po::cuda {
namespace {

constexpr int kThreads = 128;

C3PO_KERNEL void C3PO_BOUNDS(kThreads, 4) Narrow(NarrowArgs args) {
  const int64_t row = int64_t{args.first_row} + device::Block();
  const float* const from = args.rows + row * args.row_stride;
  uint16_t* const to = args.halves + row * args.half_stride;
  for (int i = device::Thread(); i < args.half_stride; i += kThreads) {
    to[i] = i < args.dimension ? device::ToFloat16(from[i]).bits : uint16_t{0};
  }
}

}  // namespace

Error LaunchNarrow(const NarrowArgs& args, Stream stream) {
  return device::Launch(Narrow, device::Grid{args.row_count}, kThreads, 0, stream, args);
}

}  // namespace c3po::cuda
