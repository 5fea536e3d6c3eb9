#ifndef C3PO_SERVER_QUANTIZE_QUANTIZATION_COST_H_
#define C3PO_SERVER_QUANTIZE_QUANTIZATION_COST_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/types/model_runner.h"

namespace c3po {

class Tokenizer;

// What quantizing costs: how far the next-token distributions q of a quantized model are from those, p, of the model
// that it was made of, at the tokens of a text.
//
// The text is cut into windows as llama.cpp's perplexity tool cuts it, so that figures can be compared: windows of
// `window` consecutive tokens, what is left at the end is dropped, the first token of each is the begin token where the
// tokenizer adds one. Each window is a sequence of its own. Scored are the predictions of the tokens behind its first
// half, [window / 2 + 1, window), which have at least half a window before them.
struct QuantizationCost {
  int64_t windows = 0;
  int64_t tokens = 0;  // scored
  // exp of the mean of -log p(token), natural logarithm, and of -log q(token).
  double stored_perplexity = 0;
  double quantized_perplexity = 0;
  // KL(p || q) = sum_v p(v) (log p(v) - log q(v)), in nats, over the scored positions.
  double mean_kl = 0;
  double mean_kl_error = 0;  // The standard error of the mean, positions taken as independent.
  double kl_99 = 0;          // The smallest KL that at least 99 of 100 positions do not exceed.
  // Positions where p and q have the same likeliest token, of equals the lowest id; in [0, 1].
  double same_greedy = 0;
};

// One position: logits of p and q over the same vocabulary, and the token that followed. Sums are double. The same
// logits have a KL of exactly 0. Pure and thread-safe.
struct PositionCost {
  double stored_loss = 0;     // -log p(token)
  double quantized_loss = 0;  // -log q(token)
  double kl = 0;              // at least 0: what rounding puts below is 0
  bool same_greedy = false;
};
// All logits finite; token in [0, V).
PositionCost CompareLogits(absl::Span<const float> stored, absl::Span<const float> quantized, int32_t token);

// At least one position.
QuantizationCost Summarize(absl::Span<const PositionCost> positions, int64_t windows);

// The tokens of a text, and the token that begins a sequence, where the tokenizer adds one. Begin it once; what a
// tokenizer puts at the end is left out.
struct TextTokens {
  std::vector<int32_t> tokens;
  std::optional<int32_t> begin;
};
// InvalidArgument: the file is not UTF-8, or more than 64 MiB; NotFound and others as ReadWholeFile. All name the file.
absl::StatusOr<TextTokens> ReadText(const std::string& path, const Tokenizer& tokenizer);

struct CostOptions {
  int window = 512;         // tokens, at least 4
  int64_t windows_max = 0;  // 0: all that the text has
  // Told after each window; may be null.
  std::function<void(int64_t done, int64_t windows)> progress = nullptr;
};

// Runs both models over the text, window by window, side by side: both are in memory, with a cache of one window of
// keys and values each, which are allocated here, and the logits of at most 64 positions.
// InvalidArgument: a text of less than one window, a window longer than a model's context, another vocabulary.
// Internal: a model gives no numbers. ResourceExhausted: no memory for a cache.
absl::StatusOr<QuantizationCost> MeasureCost(ModelRunner& stored, ModelRunner& quantized, const TextTokens& text,
                                             const CostOptions& options);

}  // namespace c3po

#endif  // C3PO_SERVER_QUANTIZE_QUANTIZATION_COST_H_
