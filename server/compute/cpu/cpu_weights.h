#ifndef C3PO_SERVER_COMPUTE_CPU_CPU_WEIGHTS_H_
#define C3PO_SERVER_COMPUTE_CPU_CPU_WEIGHTS_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "server/compute/cpu/layer_views.h"
#include "server/compute/cpu/panels.h"
#include "server/compute/matrix.h"
#include "server/compute/model_weights.h"
#include "server/model/config/model_config.h"

namespace c3po::cpu {

class ActivationSquares;

// A model's weights in the layouts that the kernels read. A value; copies share the memory.
struct CpuWeights {
  WeightView embedding;  // [V, d]
  const float* final_norm = nullptr;
  WeightView lm_head;  // [V, d]; the embedding itself when tied
  std::vector<LayerViews> layers;
  ElementType type = ElementType::kFloat32;  // of matrices that are not quantized; norms and biases are float32
  WeightFormat format = WeightFormat::kElements;
  int64_t bytes = 0;  // that all take
  std::vector<std::shared_ptr<void>> memory;
};

// Copies all weights, matrices as `type`. What activations are multiplied by lies in panels (panels.h) where it can:
// projections, routers, experts and the LM head, and the embedding where it is the LM head. `layout`: kPanels or
// kPairs, of all but routers, whose choices a rounded activation would change, and of experts of an odd number of
// neurons; these lie in kPanels. So does what cannot be in pairs: float32, or an odd number of columns. Matrices whose
// rows, of each expert, are no multiple of 16 lie row by row. Norms and the output's bias are rounded to `type`, the
// bias of queries, keys and values is not. A matrix is rearranged where it lies once it is whole, so no second copy is
// held.
//
// `format`: how the large matrices are held. kInt8 or kInt4: quantized (quantized_panels.h), from the stored weights,
// each tensor as it comes. kInt8: 8 bits for all of them. kInt4: 4 bits for experts, shared experts, dense layers'
// networks and the embedding; 8 bits for attention's projections, which are few and cost the most, for the LM head, and
// for an embedding that is the LM head too. All else is `type`: routers, gates of shared experts, norms, biases. Packed
// levels (server/weights/packed_tensors.h) are copied, bit for bit, whatever their format is.
// `as_stored`: what is not packed is `type`, but for the embedding. `format` is what the result is called then.
//
// `columns`: what the columns of matrices that are quantized here weigh when scales are chosen; null: all the same.
//
// On ThreadPool::Shared(). Errors are those of PackEach; std::bad_alloc; std::invalid_argument: a weight to be
// quantized is not finite, or 2^120 or more, or, as stored, only some of a matrix's tensors are packed so; told by the
// tensor's name.
CpuWeights PackWeights(const ModelConfig& config, const ModelWeights& weights, ElementType type, WeightLayout layout,
                       const LoadProgress& progress = nullptr, WeightFormat format = WeightFormat::kElements,
                       bool as_stored = false, const ActivationSquares* columns = nullptr);

// How `format` holds a role's matrix that is not packed yet: kInt8, kInt4, or kRows, which is not quantized. By effect
// for each byte: of the default model in 4 bits, 8 bits for attention take half of the KL for a fifth of its layers'
// weights; of larger models it is a twenty-fifth (server/README.md, "Weights of 8 and 4 bits").
WeightLayout QuantizedLayout(WeightRole role, WeightFormat format, bool tied_embeddings);

// The same of the matrix that a stored weight belongs to; `as_stored`: as PackWeights has it.
WeightLayout LayoutToHold(const ModelConfig& config, const StoredWeight& stored, WeightFormat format, bool as_stored);
// Throws std::invalid_argument where packed levels are stored in another way than the matrix that they belong to is
// held, as they are stored: what lies in one matrix has one layout.
void CheckStoredAlike(const StoredWeight& stored, WeightLayout held);

// The same views, whose products round activations (WeightView::rounds_activations) where weights are quantized.
LayerViews WithRoundedActivations(const LayerViews& views);
WeightView WithRoundedActivations(WeightView view);

}  // namespace c3po::cpu

#endif  // C3PO_SERVER_COMPUTE_CPU_CPU_WEIGHTS_H_
