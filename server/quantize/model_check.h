#ifndef C3PO_SERVER_QUANTIZE_MODEL_CHECK_H_
#define C3PO_SERVER_QUANTIZE_MODEL_CHECK_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/compute/cpu/activation_squares.h"
#include "server/quantize/quantization_cost.h"

namespace c3po {

// What is compared on a text. The stored model is the folder's own at its stored width, multiplied in float32. The
// quantized one is another folder, or is quantized from the stored weights while it loads, and computes as c3pod does
// with it by default: activations rounded to integers are part of the cost. Keys and values are float32 in both.
struct CheckOptions {
  std::string stored;                                     // folder
  std::string quantized;                                  // folder; empty: `stored`, quantized
  std::string weights;                                    // "int8" or "int4", where `quantized` is empty
  std::shared_ptr<const cpu::ActivationSquares> columns;  // likewise; see OpenOptions
  std::string text;                                       // file
  int window = 512;
};

struct ModelCheck {
  std::string text;
  int window = 0;
  std::string stored, quantized;     // how each model's weights are held: "bfloat16", "int4"
  std::string quantized_arithmetic;  // ModelShape::arithmetic
  QuantizationCost cost;
};

// Both models are in memory, one window's keys and values, and the logits of 64 positions of each. Errors are those of
// MoeModel::Load, ReadText and MeasureCost; a text that is too short is named.
absl::StatusOr<ModelCheck> CheckModel(const CheckOptions& options);

// A table of lines to read, which ends with a newline; and one JSON object, without.
std::string CheckText(const ModelCheck& check);
std::string CheckJson(const ModelCheck& check);

}  // namespace c3po

#endif  // C3PO_SERVER_QUANTIZE_MODEL_CHECK_H_
