#ifndef C3PO_SERVER_COMPUTE_CUDA_KERNEL_TABLE_H_
#define C3PO_SERVER_COMPUTE_CUDA_KERNEL_TABLE_H_

#include "index/base/cuda/runtime.h"
#include "server/compute/cuda/attention.h"
#include "server/compute/cuda/expert_products.h"
#include "server/compute/cuda/gather_rows.h"
#include "server/compute/cuda/products.h"
#include "server/compute/cuda/readout.h"
#include "server/compute/cuda/remembered.h"
#include "server/compute/cuda/router.h"
#include "server/compute/cuda/row_sums.h"
#include "server/compute/cuda/rows.h"
#include "server/compute/cuda/target_loss.h"
#include "server/compute/cuda/tree_attention.h"

namespace c3po::cuda {

// The kernels of the model as whoever plans work for a device sees them: libc3po_cuda.so exports them, tests compile
// them for the host. Each enqueues its work, checks nothing, and is thread-safe for different streams.
struct ModelKernels {
  // Rows.
  Error (*row_planes)(const RowPlanesArgs& args, Stream stream);
  Error (*embedding)(const EmbeddingArgs& args, Stream stream);
  Error (*row_sums)(const RowSumsArgs& args, Stream stream);
  // Projections and the LM head.
  Error (*product)(const ProductArgs& args, Stream stream);
  bool (*product_needs_planes)(const ProductArgs& args);  // Enqueues nothing.
  Error (*gather_rows)(const GatherRowsArgs& args, Stream stream);
  // Feed-forward networks.
  Error (*gate_up)(const ExpertProductArgs& args, Stream stream);
  Error (*down_apart)(const ExpertProductArgs& args, Stream stream);
  Error (*expert_mix)(const ExpertMixArgs& args, Stream stream);
  Error (*down_backward)(const ExpertProductArgs& args, Stream stream);
  Error (*expert_lists)(const ExpertListArgs& args, Stream stream);
  Error (*expert_sum)(const ExpertSumArgs& args, Stream stream);
  Error (*dot_sums)(const DotSumsArgs& args, Stream stream);
  // Feed-forward networks at rows that do not change.
  Error (*select_all)(const SelectAllArgs& args, Stream stream);
  Error (*mix_remembered)(const MixRememberedArgs& args, Stream stream);
  Error (*mix_remembered_backward)(const MixRememberedBackwardArgs& args, Stream stream);
  // Attention of running sequences.
  Error (*rotate)(const RotateArgs& args, Stream stream);
  Error (*attention)(const AttentionArgs& args, Stream stream);
  // Attention of an objective's trees.
  Error (*tree_attention)(const TreeAttentionArgs& args, Stream stream);
  Error (*tree_backward)(const TreeBackwardArgs& args, Stream stream);
  Error (*heads_backward)(const HeadsBackwardArgs& args, Stream stream);
  Error (*block_copies)(const BlockCopiesArgs& args, Stream stream);
  // Routing.
  Error (*router)(const RouterArgs& args, Stream stream);
  Error (*router_backward)(const RouterBackwardArgs& args, Stream stream);
  Error (*routing_sums)(const RoutingSumsArgs& args, Stream stream);
  Error (*norm_backward)(const NormBackwardArgs& args, Stream stream);
  // What is read of logits.
  Error (*readout)(const ReadoutArgs& args, Stream stream);
  Error (*token_logits)(const TokenLogitsArgs& args, Stream stream);
  Error (*logit_gradient)(const LogitGradientArgs& args, Stream stream);
  Error (*target_loss)(const TargetLossArgs& args, Stream stream);
};

// What libc3po_cuda.so exports as `c3po_model_kernels`. Null: of another version than kCudaLibraryVersion.
using ModelKernelsFunction = const ModelKernels* (*)(int version);

}  // namespace c3po::cuda

C3PO_CUDA_EXPORT const c3po::cuda::ModelKernels* c3po_model_kernels(int version);

#endif  // C3PO_SERVER_COMPUTE_CUDA_KERNEL_TABLE_H_
