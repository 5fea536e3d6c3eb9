#include "index/base/cuda/device.h"
#include "tests/host_cuda/sample_kernels.h"
#include "tests/host_cuda/sample_sum.h"

namespace c3po::host_cuda {

using namespace device;  // NOLINT: the language of kernels

namespace {

constexpr int kShareThreads = 256;

C3PO_KERNEL void C3PO_BOUNDS(kShareThreads, 1) Share(ShareArgs args) {
  float* const of_warp = static_cast<float*>(SharedMemory());  // then the sum of all
  const bool inside = Thread() < args.n;
  const float x = inside ? args.x[Thread()] : 0;
  const float sum = SumOfWarp(x);
  if (Lane() == 0) of_warp[Warp()] = sum;
  SyncBlock();
  if (Warp() == 0) {
    const float all = SumOfWarp(Lane() < Warps() ? of_warp[Lane()] : 0.0f);
    if (Lane() == 0) of_warp[0] = all;
  }
  SyncBlock();  // before the sum is read
  if (inside) args.y[Thread()] = Divide(x, of_warp[0]);
}

C3PO_KERNEL void C3PO_BOUNDS(32, 1) Scan(ScanArgs args) {
  int sum = args.x[32 * Block() + Lane()];
  for (int delta = 1; delta < 32; delta *= 2) {
    const int before = ShuffleUp(sum, delta);
    if (Lane() >= delta) sum += before;
  }
  args.y[32 * Block() + Lane()] = sum;
}

C3PO_KERNEL void C3PO_BOUNDS(32, 1) Reverse(ReverseArgs args) {
  int* const values = static_cast<int*>(SharedMemory());
  values[Lane()] = args.x[Lane()];
  SyncWarp();
  args.y[Lane()] = values[31 - Lane()];
}

constexpr int kRows = 32, kColumns = 8, kDepth = 16;

struct ProductStage {
  uint16_t a[kRows][kDepth];
  uint16_t b[kDepth][kColumns];
};

// A thread copies 16 bytes of A; one of the first 16 also a row of B.
C3PO_DEVICE void CopyTile(ProductStage& stage, const ProductArgs& args, int tile) {
  const int row = Thread() / 2, column = 8 * (Thread() % 2);
  CopyAsync16(&stage.a[row][column], args.a + int64_t{row} * args.k + tile * kDepth + column);
  if (Thread() < kDepth) CopyAsync16(stage.b[Thread()], args.b + int64_t{tile * kDepth + Thread()} * kColumns);
}

C3PO_DEVICE void MultiplyTile(const ProductStage& stage, float (&sum)[4]) {
  const int g = Lane() / 4, t = Lane() % 4;
  uint32_t a[4];
  LoadMatrices4(a, &stage.a[16 * Warp() + Lane() % 16][8 * (Lane() / 16)]);
  // A word has two neighbors of a row of B; the product takes two of a column.
  const auto* const upper = reinterpret_cast<const uint32_t*>(stage.b[g]);
  const auto* const lower = reinterpret_cast<const uint32_t*>(stage.b[g + 8]);
  const uint32_t b[2] = {Transpose8x8(upper[t]), Transpose8x8(lower[t])};
  MultiplyAdd16x8x16(sum, a, b);
}

C3PO_KERNEL void C3PO_BOUNDS(64, 1) Product(ProductArgs args) {
  auto* const stages = static_cast<ProductStage*>(SharedMemory());
  const int tiles = args.k / kDepth;
  float sum[4] = {};
  CopyTile(stages[0], args, 0);
  CommitCopies();
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) CopyTile(stages[(tile + 1) % 2], args, tile + 1);
    CommitCopies();
    WaitCopies<1>();
    SyncBlock();
    MultiplyTile(stages[tile % 2], sum);
    SyncBlock();  // before the stage is copied to again
  }
  const int row = 16 * Warp() + Lane() / 4, column = 2 * (Lane() % 4);
  for (int i = 0; i < 4; ++i) args.y[(row + 8 * (i / 2)) * kColumns + column + i % 2] = sum[i];
}

}  // namespace

Error LaunchShare(const ShareArgs& args, Stream stream) {
  return Launch(Share, Grid{1}, kShareThreads, kShareThreads / 32 * static_cast<int>(sizeof(float)), stream, args);
}

Error LaunchScan(const ScanArgs& args, int blocks, Stream stream) {
  return Launch(Scan, Grid{blocks}, 32, 0, stream, args);
}

Error LaunchReverse(const ReverseArgs& args, Stream stream) {
  return Launch(Reverse, Grid{1}, 32, 32 * static_cast<int>(sizeof(int)), stream, args);
}

Error LaunchProduct(const ProductArgs& args, Stream stream) {
  return Launch(Product, Grid{1}, 64, 2 * static_cast<int>(sizeof(ProductStage)), stream, args);
}

}  // namespace c3po::host_cuda
