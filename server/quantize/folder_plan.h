#ifndef C3PO_SERVER_QUANTIZE_FOLDER_PLAN_H_
#define C3PO_SERVER_QUANTIZE_FOLDER_PLAN_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/compute/cpu/panels.h"
#include "server/compute/matrix.h"
#include "server/compute/model_weights.h"
#include "server/model/config/model_config.h"
#include "server/quantize/shard_file.h"
#include "server/weights/host_matrix.h"

namespace c3po {

// A weight of the folder to write, X.weight, X.bias or a norm, and what it is made from.
struct PlannedWeight {
  std::string name;
  WeightRole role = WeightRole::kEmbedding;
  std::vector<int64_t> shape;
  HostMatrix from = {};
  cpu::WeightLayout layout = cpu::WeightLayout::kRows;  // kInt8 or kInt4; kRows: its bytes are copied.
  int64_t group_columns = 0;                            // of its scales

  bool quantized() const { return layout != cpu::WeightLayout::kRows; }
  int bits() const { return layout == cpu::WeightLayout::kInt8 ? 8 : 4; }
  // "X" of "X.weight".
  std::string stem() const;
  // That it lies in: itself, or its packed levels, scales and shape, in this order (packed_tensors.h).
  std::vector<ShardTensor> tensors() const;
};

// All weights in the order of the folder that they come from, experts one by one. Quantized is what --weights quantizes
// at load (cpu::QuantizedLayout) but an embedding, where the columns are a multiple of 16: scales are of 32, or of 16 where 32 do not
// divide the columns, the two of a group being equal then. InvalidArgument: the weights are not those of `config`.
absl::StatusOr<std::vector<PlannedWeight>> PlanWeights(const ModelConfig& config, const ModelWeights& weights,
                                                       WeightFormat format);

// The config.json of the folder: `text` with quantization_config, as transformers and vLLM read it, and
// tie_word_embeddings as the weights have it. InvalidArgument: `text` is not JSON.
absl::StatusOr<std::string> QuantizedConfig(absl::string_view text, const ModelConfig& config,
                                            const std::vector<PlannedWeight>& weights);

}  // namespace c3po

#endif  // C3PO_SERVER_QUANTIZE_FOLDER_PLAN_H_
