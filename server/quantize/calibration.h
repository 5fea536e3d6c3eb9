#ifndef C3PO_SERVER_QUANTIZE_CALIBRATION_H_
#define C3PO_SERVER_QUANTIZE_CALIBRATION_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/compute/cpu/activation_squares.h"
#include "server/model/moe_model.h"
#include "server/quantize/quantization_cost.h"
#include "server/quantize/quantize_folder.h"

namespace c3po {

// How a folder's model is opened to look at it, on the CPU.
struct OpenOptions {
  std::string folder;
  std::string weights = "auto";     // see ChoosePlacement
  std::string arithmetic = "auto";  // likewise
  // What columns weigh where `weights` quantizes; null: all the same.
  std::shared_ptr<const cpu::ActivationSquares> columns;
  // Is told the activations that meet the matrices; null: nobody.
  std::shared_ptr<cpu::ActivationSquares> observer;
};

struct LoadedModel {
  std::unique_ptr<MoeModel> model;
  std::string weights, arithmetic;  // as ModelShape tells them
};

// Keys and values are float32: what is looked at are weights. Errors are those of MoeModel::Load.
absl::StatusOr<LoadedModel> OpenModel(const OpenOptions& options);

struct Calibration {
  std::shared_ptr<const cpu::ActivationSquares> squares;
  int64_t tokens = 0;  // read
};

// Runs the folder's model, at its stored width, over the text's first tokens, `tokens_max` at most, in sequences of 512
// (the context's length where that is shorter), each after the begin token where there is one. The LM head is looked at
// at one position in eight. Takes the memory of the model. The squares depend on the processor, in their last bits, as
// its products do. InvalidArgument: the text has no token.
absl::StatusOr<Calibration> Calibrate(const std::string& folder, const TextTokens& text, int64_t tokens_max = 8192);

// What the columns of a tensor of the folder to write weigh, by `squares` of the model in `from`.
absl::StatusOr<ColumnWeighting> WeightingOf(const std::string& from,
                                            std::shared_ptr<const cpu::ActivationSquares> squares);

}  // namespace c3po

#endif  // C3PO_SERVER_QUANTIZE_CALIBRATION_H_
