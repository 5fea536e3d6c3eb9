#include "server/quantize/model_check.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "index/base/status_macros.h"
#include "server/model/moe_model.h"
#include "server/quantize/calibration.h"
#include "server/text/tokenizer.h"

namespace c3po {
namespace {

absl::Status OfText(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
}

}  // namespace

absl::StatusOr<ModelCheck> CheckModel(const CheckOptions& options) {
  C3PO_ASSIGN_OR_RETURN(const std::shared_ptr<const Tokenizer> tokenizer, Tokenizer::LoadFolder(options.stored));
  C3PO_ASSIGN_OR_RETURN(const TextTokens text, ReadText(options.text, *tokenizer));
  OpenOptions of_stored, of_quantized;
  of_stored.folder = options.stored;
  of_stored.arithmetic = "float32";
  of_quantized.folder = options.quantized;
  if (options.quantized.empty()) {
    of_quantized.folder = options.stored;
    of_quantized.weights = options.weights;
    of_quantized.columns = options.columns;
  }
  C3PO_ASSIGN_OR_RETURN(const LoadedModel stored, OpenModel(of_stored));
  if (stored.weights == "int8" || stored.weights == "int4") {
    return absl::InvalidArgumentError(absl::StrCat(
        options.stored, ": its weights are quantized already, and the model that they were made of is not there"));
  }
  C3PO_ASSIGN_OR_RETURN(const LoadedModel quantized, OpenModel(of_quantized));
  CostOptions cost;
  cost.window = options.window;
  const absl::StatusOr<QuantizationCost> measured = MeasureCost(*stored.model, *quantized.model, text, cost);
  if (!measured.ok()) return OfText(options.text, measured.status());
  return ModelCheck{options.text, options.window, stored.weights, quantized.weights, quantized.arithmetic, *measured};
}

std::string CheckText(const ModelCheck& check) {
  const QuantizationCost& cost = check.cost;
  std::string text;
  const auto add = [&](const char* name, const std::string& value) {
    absl::StrAppendFormat(&text, "%-18s %s\n", name, value);
  };
  add("text", check.text);
  add("scored",
      absl::StrFormat("%d tokens, the second halves of %d windows of %d", cost.tokens, cost.windows, check.window));
  add("perplexity", absl::StrFormat("%.4f %s, %.4f %s", cost.stored_perplexity, check.stored, cost.quantized_perplexity,
                                    check.quantized));
  add("mean KL", absl::StrFormat("%.6f nats a token, standard error %.6f", cost.mean_kl, cost.mean_kl_error));
  add("99th percentile", absl::StrFormat("%.6f", cost.kl_99));
  add("same greedy token", absl::StrFormat("%.2f %%", 100 * cost.same_greedy));
  return text;
}

std::string CheckJson(const ModelCheck& check) {
  const QuantizationCost& cost = check.cost;
  const nlohmann::ordered_json json = {{"text", check.text},
                                       {"window", check.window},
                                       {"windows", cost.windows},
                                       {"tokens", cost.tokens},
                                       {"stored_weights", check.stored},
                                       {"quantized_weights", check.quantized},
                                       {"quantized_arithmetic", check.quantized_arithmetic},
                                       {"stored_perplexity", cost.stored_perplexity},
                                       {"quantized_perplexity", cost.quantized_perplexity},
                                       {"mean_kl", cost.mean_kl},
                                       {"mean_kl_standard_error", cost.mean_kl_error},
                                       {"kl_percentile_99", cost.kl_99},
                                       {"same_greedy", cost.same_greedy}};
  // A file's name need not be UTF-8.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace c3po
