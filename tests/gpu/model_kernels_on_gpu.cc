// The model's kernels by the names that their tests call: those of libc3po_cuda.so.

#include "server/compute/cuda/kernel_table.h"
#include "tests/gpu/kernel_device_on_gpu.h"

namespace c3po::cuda {
namespace {

using host_cuda::TestedStream;

const ModelKernels& Kernels() { return host_cuda::TestedKernels<ModelKernels>("c3po_model_kernels"); }

}  // namespace

Error LaunchRowPlanes(const RowPlanesArgs& args, Stream) { return Kernels().row_planes(args, TestedStream()); }
Error LaunchEmbedding(const EmbeddingArgs& args, Stream) { return Kernels().embedding(args, TestedStream()); }
Error LaunchRowSums(const RowSumsArgs& args, Stream) { return Kernels().row_sums(args, TestedStream()); }
Error LaunchProduct(const ProductArgs& args, Stream) { return Kernels().product(args, TestedStream()); }
Error LaunchGatherRows(const GatherRowsArgs& args, Stream) { return Kernels().gather_rows(args, TestedStream()); }
Error LaunchGateUp(const ExpertProductArgs& args, Stream) { return Kernels().gate_up(args, TestedStream()); }
Error LaunchDownApart(const ExpertProductArgs& args, Stream) { return Kernels().down_apart(args, TestedStream()); }
Error LaunchExpertMix(const ExpertMixArgs& args, Stream) { return Kernels().expert_mix(args, TestedStream()); }
Error LaunchDownBackward(const ExpertProductArgs& args, Stream) {
  return Kernels().down_backward(args, TestedStream());
}
Error LaunchExpertLists(const ExpertListArgs& args, Stream) { return Kernels().expert_lists(args, TestedStream()); }
Error LaunchExpertSum(const ExpertSumArgs& args, Stream) { return Kernels().expert_sum(args, TestedStream()); }
Error LaunchDotSums(const DotSumsArgs& args, Stream) { return Kernels().dot_sums(args, TestedStream()); }
Error LaunchSelectAll(const SelectAllArgs& args, Stream) { return Kernels().select_all(args, TestedStream()); }
Error LaunchMixRemembered(const MixRememberedArgs& args, Stream) {
  return Kernels().mix_remembered(args, TestedStream());
}
Error LaunchMixRememberedBackward(const MixRememberedBackwardArgs& args, Stream) {
  return Kernels().mix_remembered_backward(args, TestedStream());
}
Error LaunchRotate(const RotateArgs& args, Stream) { return Kernels().rotate(args, TestedStream()); }
Error LaunchAttention(const AttentionArgs& args, Stream) { return Kernels().attention(args, TestedStream()); }
Error LaunchTreeAttention(const TreeAttentionArgs& args, Stream) {
  return Kernels().tree_attention(args, TestedStream());
}
Error LaunchTreeBackward(const TreeBackwardArgs& args, Stream) { return Kernels().tree_backward(args, TestedStream()); }
Error LaunchHeadsBackward(const HeadsBackwardArgs& args, Stream) {
  return Kernels().heads_backward(args, TestedStream());
}
Error LaunchBlockCopies(const BlockCopiesArgs& args, Stream) { return Kernels().block_copies(args, TestedStream()); }
Error LaunchRouter(const RouterArgs& args, Stream) { return Kernels().router(args, TestedStream()); }
Error LaunchRouterBackward(const RouterBackwardArgs& args, Stream) {
  return Kernels().router_backward(args, TestedStream());
}
Error LaunchRoutingSums(const RoutingSumsArgs& args, Stream) { return Kernels().routing_sums(args, TestedStream()); }
Error LaunchNormBackward(const NormBackwardArgs& args, Stream) { return Kernels().norm_backward(args, TestedStream()); }
Error LaunchReadout(const ReadoutArgs& args, Stream) { return Kernels().readout(args, TestedStream()); }
Error LaunchTokenLogits(const TokenLogitsArgs& args, Stream) { return Kernels().token_logits(args, TestedStream()); }
Error LaunchLogitGradient(const LogitGradientArgs& args, Stream) {
  return Kernels().logit_gradient(args, TestedStream());
}
Error LaunchTargetLoss(const TargetLossArgs& args, Stream) { return Kernels().target_loss(args, TestedStream()); }
bool ProductNeedsPlanes(const ProductArgs& args) { return Kernels().product_needs_planes(args); }

}  // namespace c3po::cuda
