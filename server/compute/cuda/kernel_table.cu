#include "server/compute/cuda/kernel_table.h"

namespace c3po::cuda {
namespace {

constexpr ModelKernels kKernels = {
    .row_planes = &LaunchRowPlanes,
    .embedding = &LaunchEmbedding,
    .row_sums = &LaunchRowSums,
    .product = &LaunchProduct,
    .product_needs_planes = &ProductNeedsPlanes,
    .gather_rows = &LaunchGatherRows,
    .gate_up = &LaunchGateUp,
    .down_apart = &LaunchDownApart,
    .expert_mix = &LaunchExpertMix,
    .down_backward = &LaunchDownBackward,
    .expert_lists = &LaunchExpertLists,
    .expert_sum = &LaunchExpertSum,
    .dot_sums = &LaunchDotSums,
    .select_all = &LaunchSelectAll,
    .mix_remembered = &LaunchMixRemembered,
    .mix_remembered_backward = &LaunchMixRememberedBackward,
    .rotate = &LaunchRotate,
    .attention = &LaunchAttention,
    .tree_attention = &LaunchTreeAttention,
    .tree_backward = &LaunchTreeBackward,
    .heads_backward = &LaunchHeadsBackward,
    .block_copies = &LaunchBlockCopies,
    .router = &LaunchRouter,
    .router_backward = &LaunchRouterBackward,
    .routing_sums = &LaunchRoutingSums,
    .norm_backward = &LaunchNormBackward,
    .readout = &LaunchReadout,
    .token_logits = &LaunchTokenLogits,
    .logit_gradient = &LaunchLogitGradient,
    .target_loss = &LaunchTargetLoss,
};

}  // namespace
}  // namespace c3po::cuda

const c3po::cuda::ModelKernels* c3po_model_kernels(int version) {
  return version == c3po::cuda::kCudaLibraryVersion ? &c3po::cuda::kKernels : nullptr;
}
