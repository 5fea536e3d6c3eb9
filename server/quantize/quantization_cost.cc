#include "server/quantize/quantization_cost.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "server/sampling/softmax.h"
#include "server/text/tokenizer.h"

namespace c3po {
namespace {

constexpr int64_t kTextBytesMax = 64 << 20;
constexpr int kBlockPositions = 16;
constexpr int64_t kPiecePositions = 64;  // whose logits are there at once: 2 * 64 * V * 4 bytes of each model

// A row's softmax: log p(v) = logits[v] - log_normalizer.
struct Distribution {
  std::vector<double> weights;  // exp(logit - largest)
  double total = 0;
  double log_normalizer = 0;
  size_t likeliest = 0;
};

Distribution DistributionOf(absl::Span<const float> logits, std::vector<double> room) {
  Distribution distribution;
  const auto largest = std::max_element(logits.begin(), logits.end());
  distribution.likeliest = static_cast<size_t>(largest - logits.begin());
  distribution.weights = std::move(room);
  distribution.weights.resize(logits.size());
  SoftmaxWeights(logits, *largest, 1, absl::MakeSpan(distribution.weights));
  distribution.total = std::accumulate(distribution.weights.begin(), distribution.weights.end(), 0.0);
  distribution.log_normalizer = *largest + std::log(distribution.total);
  return distribution;
}

// A model going through a window.
class WindowReader {
 public:
  explicit WindowReader(ModelRunner& model) : model_(model) {}

  absl::Status Prepare(int window) {
    const int blocks = (window + kBlockPositions - 1) / kBlockPositions;
    blocks_.resize(static_cast<size_t>(blocks));
    std::iota(blocks_.begin(), blocks_.end(), 0);
    wanted_.resize(kPiecePositions);
    for (ReadoutRequest& request : wanted_) request.logits = true;
    return model_.AllocateKvCache({blocks, kBlockPositions});
  }

  // Positions [begin, end) of a sequence whose earlier ones were read. With `logits`, of each of them.
  absl::Status Read(absl::Span<const int32_t> window, int64_t begin, int64_t end, bool logits) {
    Segment segment;
    segment.kv.blocks = blocks_;
    segment.start = static_cast<int>(begin);
    segment.tokens = window.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    if (logits) segment.row_readouts = absl::MakeConstSpan(wanted_).subspan(0, segment.tokens.size());
    C3PO_RETURN_IF_ERROR(model_.Forward({&segment, 1}, outputs_));
    for (const Readout& row : outputs_[0].row_readouts) C3PO_RETURN_IF_ERROR(row.status);
    return absl::OkStatus();
  }

  absl::Span<const float> logits(int64_t row) const {
    return outputs_[0].row_readouts[static_cast<size_t>(row)].logits;
  }

 private:
  ModelRunner& model_;
  std::vector<int32_t> blocks_;
  std::vector<ReadoutRequest> wanted_;
  std::vector<SegmentOutput> outputs_;
};

absl::Status ReadWindow(absl::Span<const int32_t> window, WindowReader& stored, WindowReader& quantized,
                        std::vector<PositionCost>& costs) {
  const auto size = static_cast<int64_t>(window.size()), first = size / 2;
  for (int64_t begin = 0; begin < first; begin += 4 * kPiecePositions) {
    const int64_t end = std::min(first, begin + 4 * kPiecePositions);
    C3PO_RETURN_IF_ERROR(stored.Read(window, begin, end, /*logits=*/false));
    C3PO_RETURN_IF_ERROR(quantized.Read(window, begin, end, /*logits=*/false));
  }
  for (int64_t begin = first; begin < size - 1; begin += kPiecePositions) {
    const int64_t end = std::min(size - 1, begin + kPiecePositions);
    C3PO_RETURN_IF_ERROR(stored.Read(window, begin, end, /*logits=*/true));
    C3PO_RETURN_IF_ERROR(quantized.Read(window, begin, end, /*logits=*/true));
    for (int64_t p = begin; p < end; ++p) {
      costs.push_back(
          CompareLogits(stored.logits(p - begin), quantized.logits(p - begin), window[static_cast<size_t>(p + 1)]));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const ModelShape& stored, const ModelShape& quantized, const TextTokens& text, int window) {
  if (window < 4) return absl::InvalidArgumentError(absl::StrCat("a window of ", window, " tokens is shorter than 4"));
  const int context = std::min(stored.context_window, quantized.context_window);
  if (window > context) {
    return absl::InvalidArgumentError(
        absl::StrCat("a window of ", window, " tokens exceeds the model's context of ", context));
  }
  if (stored.vocabulary_size != quantized.vocabulary_size) {
    return absl::InvalidArgumentError(absl::StrCat("vocabularies of ", stored.vocabulary_size, " and of ",
                                                   quantized.vocabulary_size, " tokens cannot be compared"));
  }
  const size_t tokens = text.tokens.size() + (text.begin ? 1 : 0);
  if (tokens < static_cast<size_t>(window)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", tokens, " tokens, fewer than one window of ", window));
  }
  return absl::OkStatus();
}

}  // namespace

PositionCost CompareLogits(absl::Span<const float> stored, absl::Span<const float> quantized, int32_t token) {
  // Two rows of doubles, whose memory stays with the thread.
  thread_local std::vector<double> rooms[2];
  Distribution p = DistributionOf(stored, std::move(rooms[0])), q = DistributionOf(quantized, std::move(rooms[1]));
  // log p - log q = (stored - quantized) - (log Z_p - log Z_q), and the second difference is the same at each token.
  double difference = 0;
  for (size_t v = 0; v < stored.size(); ++v) difference += p.weights[v] * (double{stored[v]} - double{quantized[v]});
  PositionCost cost;
  cost.kl = std::max(0.0, difference / p.total - (p.log_normalizer - q.log_normalizer));
  const auto at = static_cast<size_t>(token);
  cost.stored_loss = p.log_normalizer - stored[at];
  cost.quantized_loss = q.log_normalizer - quantized[at];
  cost.same_greedy = p.likeliest == q.likeliest;
  rooms[0] = std::move(p.weights);
  rooms[1] = std::move(q.weights);
  return cost;
}

QuantizationCost Summarize(absl::Span<const PositionCost> positions, int64_t windows) {
  const auto count = static_cast<double>(positions.size());
  double stored = 0, quantized = 0, kl = 0, same = 0, squares = 0;
  std::vector<double> sorted;
  for (const PositionCost& position : positions) {
    stored += position.stored_loss;
    quantized += position.quantized_loss;
    kl += position.kl;
    same += position.same_greedy ? 1 : 0;
    sorted.push_back(position.kl);
  }
  QuantizationCost cost;
  cost.windows = windows;
  cost.tokens = static_cast<int64_t>(positions.size());
  cost.stored_perplexity = std::exp(stored / count);
  cost.quantized_perplexity = std::exp(quantized / count);
  cost.mean_kl = kl / count;
  for (const double one : sorted) squares += (one - cost.mean_kl) * (one - cost.mean_kl);
  if (count > 1) cost.mean_kl_error = std::sqrt(squares / (count - 1) / count);
  std::sort(sorted.begin(), sorted.end());
  cost.kl_99 = sorted[(99 * sorted.size() + 99) / 100 - 1];
  cost.same_greedy = same / count;
  return cost;
}

absl::StatusOr<TextTokens> ReadText(const std::string& path, const Tokenizer& tokenizer) {
  C3PO_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kTextBytesMax));
  TextTokens read;
  auto tokens = tokenizer.Encode(text, /*add_special_tokens=*/false);
  if (!tokens.ok()) return absl::Status(tokens.status().code(), absl::StrCat(path, ": ", tokens.status().message()));
  read.tokens = *std::move(tokens);
  // What stands before a text that has one token of its own, or before none.
  C3PO_ASSIGN_OR_RETURN(const std::vector<int32_t> plain, tokenizer.Encode("a", /*add_special_tokens=*/false));
  C3PO_ASSIGN_OR_RETURN(const std::vector<int32_t> framed, tokenizer.Encode("a", /*add_special_tokens=*/true));
  if (!framed.empty() && framed.front() != plain.front()) read.begin = framed.front();
  return read;
}

absl::StatusOr<QuantizationCost> MeasureCost(ModelRunner& stored, ModelRunner& quantized, const TextTokens& text,
                                             const CostOptions& options) {
  C3PO_RETURN_IF_ERROR(CheckOptions(stored.shape(), quantized.shape(), text, options.window));
  std::vector<int32_t> tokens;
  if (text.begin) tokens.push_back(*text.begin);
  tokens.insert(tokens.end(), text.tokens.begin(), text.tokens.end());
  const auto size = static_cast<size_t>(options.window);
  auto windows = static_cast<int64_t>(tokens.size() / size);
  if (options.windows_max > 0) windows = std::min(windows, options.windows_max);
  WindowReader of_stored(stored), of_quantized(quantized);
  C3PO_RETURN_IF_ERROR(of_stored.Prepare(options.window));
  C3PO_RETURN_IF_ERROR(of_quantized.Prepare(options.window));
  std::vector<PositionCost> costs;
  for (int64_t w = 0; w < windows; ++w) {
    const absl::Span<int32_t> window = absl::MakeSpan(tokens).subspan(static_cast<size_t>(w) * size, size);
    if (text.begin) window.front() = *text.begin;
    C3PO_RETURN_IF_ERROR(ReadWindow(window, of_stored, of_quantized, costs));
    if (options.progress) options.progress(w + 1, windows);
  }
  return Summarize(costs, windows);
}

}  // namespace c3po
