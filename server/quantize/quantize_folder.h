#ifndef C3PO_SERVER_QUANTIZE_QUANTIZE_FOLDER_H_
#define C3PO_SERVER_QUANTIZE_QUANTIZE_FOLDER_H_

#include <cstdint>
#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/compute/matrix.h"

namespace c3po {

// What each column of a matrix weighs when its scales are chosen: of W [n, k], by the name of its tensor as OUT has it
// ("model.layers.3.mlp.experts.7.down_proj.weight"), k numbers >= 0: the mean squares of the activations that meet the
// columns. Empty: all the same, as --weights quantizes at load. The span is read until the
// next call. Called by one thread.
using ColumnWeighting = std::function<absl::Span<const float>(absl::string_view tensor)>;

struct QuantizeOptions {
  std::string from;                            // A Hugging Face folder.
  std::string to;                              // The folder to write; nothing may be there.
  WeightFormat weights = WeightFormat::kInt4;  // kInt8 or kInt4; see cpu::QuantizedLayout.
  ColumnWeighting columns;                     // Null: as if it were empty for each tensor.
  int64_t shard_bytes_max = 5'000'000'000;     // Of a file of weights, unless one tensor is larger.
  std::function<bool()> stopped;               // Asked between tensors; null: never.
  std::function<void(int, int)> progress;      // Tensors done, of all; null: nobody asks.
};

struct QuantizeResult {
  int64_t tensors = 0, quantized = 0;    // Written, under the names that OUT has; of these quantized.
  int64_t bytes_from = 0, bytes_to = 0;  // Of all weights.
};

// Writes a folder with the weights of another in 8 or 4 bits: safetensors in the "pack-quantized" layout of
// compressed-tensors (server/weights/packed_tensors.h), config.json with its `quantization_config`, and what else the
// folder has. Levels and scales are those of --weights at load (server/compute/cpu/quantized_panels.h).
//
// It is written beside `to`, under its name with ".partial-" and six characters, and renamed at the end, so `to` is
// whole or not there; on an error or when stopped the other is removed. Memory: some times the largest tensor.
absl::StatusOr<QuantizeResult> QuantizeFolder(const QuantizeOptions& options);

}  // namespace c3po

#endif  // C3PO_SERVER_QUANTIZE_QUANTIZE_FOLDER_H_
