// One block a row: norm, rotation and the cache for steps that have several rows of one sequence. A warp a head.
#include "index/base/cuda/device.h"
#include "server/compute/cuda/attention.h"
#include "server/compute/cuda/transform_heads.h"

namespace c3po::cuda {
namespace {

using namespace device;  // NOLINT(google-build-using-namespace): the language of kernels.

template <int kPlanes>
C3PO_KERNEL void C3PO_BOUNDS(kTransformThreads, 8) Rotate(RotateArgs args) {
  WaitForPreviousKernel();
  LetNextKernelStart();
  float* const scratch = static_cast<float*>(SharedMemory());
  const HeadTransform& transform = args.transform;
  const int64_t r = Block();
  const AttentionRow row = args.rows[r];
  if (row.sequence < 0) return;
  const int heads = transform.heads, kv_heads = transform.kv_heads;
  const float q_factor = WholeFactor(transform, args.source.q + r * args.source.q_stride, heads, scratch);
  const float k_factor = WholeFactor(transform, args.source.k + r * args.source.k_stride, kv_heads, scratch);
  for (int task = Warp(); task < heads + kv_heads; task += Warps()) {
    if (task < heads) {
      if (args.q == nullptr) continue;
      float* const to = args.q + (r * heads + task) * transform.head_dim;
      TransformHead(transform, RawQuery(transform, args.source, r, task), transform.q_norm, task, q_factor,
                    row.position, [&](int i, float x) { to[i] = x; });
      continue;
    }
    const int g = task - heads;
    if (args.k != nullptr) {
      float* const to = args.k + (r * kv_heads + g) * transform.head_dim;
      TransformHead(transform, RawKey(transform, args.source, r, g), transform.k_norm, g, k_factor, row.position,
                    [&](int i, float x) { to[i] = x; });
    }
    if (args.v != nullptr) {
      const float* const from = RawValue(args.source, r, g);
      float* const to = args.v + (r * kv_heads + g) * transform.value_dim;
      for (int i = Lane(); i < transform.value_dim; i += 32) to[i] = Clipped(from[i], transform.clip);
    }
    if (args.cache.keys == nullptr) continue;
    const int cache_row =
        CacheRowOf(args.sequences[row.sequence], args.tables, args.cache.block_positions, kv_heads, g, row.position);
    AppendKey<kPlanes>(transform, args.source, args.cache, r, g, row.position, k_factor, cache_row);
    AppendValue<kPlanes>(transform, args.source, args.cache, r, g, cache_row);
  }
}

}  // namespace

Error LaunchRotate(const RotateArgs& args, Stream stream) {
  if (args.row_count == 0) return nullptr;
  constexpr int kShared = kTransformThreads / 32 * static_cast<int>(sizeof(float));
  return LaunchEarly(args.planes == 1 ? Rotate<1> : Rotate<3>, Grid{args.row_count}, kTransformThreads, kShared, stream,
                     args);
}

}  // namespace c3po::cuda
