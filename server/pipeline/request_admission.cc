#include "server/pipeline/request_admission.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/pipeline/search_work.h"

namespace c3po {
namespace {

// Evaluations of kernel regression's grid, and of a fixed blend and its start; of mode finding, at its start and end.
constexpr int kGridTrials = 11, kBlendTrials = 2, kModeTrials = 2;

// What admission is told of a request. Kernel regression tries a fixed grid, mode finding's steps search and average
// pathways, and learned shifts take one step.
RequestWork WorkOf(const OptimizationSettings& settings, size_t prompt_tokens, int output_tokens, int moe_layers) {
  RequestWork work;
  work.prompt_tokens = static_cast<int>(prompt_tokens);
  work.output_tokens = output_tokens;
  work.retrieves = Retrieves(settings);
  const bool descends = settings.method == Method::kNeighborhoodGradientDescent || settings.method == Method::kOracle;
  const bool iterates = descends || settings.method == Method::kModeFinding;
  if (iterates || settings.method == Method::kKernelRegression)
    work.prepared_cases = work.retrieves ? settings.k + settings.validation_neighbors : 1;
  if (iterates) work.steps = settings.steps;
  // Each part evaluates the held-out neighbors at an iterate of its own; one such pass is in a step's price.
  if (settings.neighborhoods > 1 && work.prepared_cases > 0) {
    work.passes_per_step += static_cast<double>((settings.neighborhoods - 1) * settings.validation_neighbors) /
                            static_cast<double>(work.prepared_cases);
  }
  if (settings.method == Method::kModeFinding) {
    work.passes_per_step = 0;
    work.trials = kModeTrials;
  }
  if (settings.method == Method::kKernelRegression) work.trials = settings.alpha ? kBlendTrials : kGridTrials;
  work.positions = settings.prompt_positions;
  work.moving_share = MovingShare(settings.critical_layers, moe_layers);
  return work;
}

}  // namespace

double MovingShare(const std::vector<int>& critical_layers, int moe_layers) {
  if (critical_layers.empty()) return 1;
  return static_cast<double>(moe_layers - critical_layers.front()) / moe_layers;
}

int64_t PassesCost(absl::Span<const NeighborCase> cases, int passes, int positions, double moving_share) {
  double tokens = 0, rows = 0;
  for (const NeighborCase& one : cases) {
    tokens += static_cast<double>(CaseTokens(one));
    rows += static_cast<double>(CaseRows(one, positions));
  }
  return static_cast<int64_t>(std::ceil(tokens + passes * rows * moving_share));
}

absl::Status CheckStops(const std::vector<std::string>& stop, const RequestLimits& limits) {
  if (stop.size() > static_cast<size_t>(limits.stop_strings_max)) {
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.stop: ", stop.size(), " strings are more than ", limits.stop_strings_max));
  }
  for (size_t i = 0; i < stop.size(); ++i) {
    if (stop[i].size() > static_cast<size_t>(limits.stop_string_bytes_max))
      return absl::InvalidArgumentError(absl::StrCat("sampling.stop[", i, "]: ", stop[i].size(),
                                                     " bytes are more than ", limits.stop_string_bytes_max));
  }
  return absl::OkStatus();
}

absl::Status CheckAnswers(const SamplingParams& sampling, const RequestLimits& limits) {
  if (sampling.n <= limits.answers_max) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("sampling.n: ", sampling.n, " answers are more than ", limits.answers_max));
}

absl::Status CheckLogitBias(const SamplingParams& sampling, const RequestLimits& limits, int vocabulary) {
  if (sampling.logit_bias.size() > static_cast<size_t>(limits.logit_bias_max)) {
    return absl::InvalidArgumentError(absl::StrCat("sampling.logit_bias: ", sampling.logit_bias.size(),
                                                   " entries are more than ", limits.logit_bias_max));
  }
  for (const LogitBias& b : sampling.logit_bias) {
    if (b.token_id >= 0 && b.token_id < vocabulary) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("sampling.logit_bias[", b.token_id, "]: the vocabulary has ", vocabulary, " tokens"));
  }
  return absl::OkStatus();
}

absl::Status CheckExperts(const ExpertsWish& wish, const OptimizationSettings& settings, const RequestLimits& limits,
                          const ModelShape& shape) {
  if (!wish.per_token) return absl::OkStatus();
  const int most = limits.experts_per_token_max > 0
                       ? std::min(limits.experts_per_token_max, shape.experts_per_token_max)
                       : shape.experts_per_token_max;
  const int asked = *wish.per_token;
  if (asked == shape.experts_per_token) return absl::OkStatus();
  if (asked < 1 || asked > most) {
    return absl::InvalidArgumentError(absl::StrCat("experts_per_token: ", asked, " is outside 1 to ", most));
  }
  if (settings.method != Method::kNone) {
    return absl::InvalidArgumentError(
        absl::StrCat("experts_per_token: ", asked, " is not the model's own number, ", shape.experts_per_token,
                     ", which the references' states and pathways are of; set optimization.method to NONE"));
  }
  if (settings.use_offset) {
    return absl::InvalidArgumentError(
        absl::StrCat("experts_per_token: ", asked, " is not the model's own number, ", shape.experts_per_token,
                     ", under which the label offset was fitted; set optimization.use_offset to false"));
  }
  return absl::OkStatus();
}

int ExpertsPerToken(const ExpertsWish& wish, const ModelShape& shape) {
  const int asked = wish.per_token.value_or(shape.experts_per_token);
  return asked == shape.experts_per_token ? 0 : asked;
}

absl::Status HoldRoutes(const CallContext& call, const ExpertsWish& wish, int64_t tokens, bool in_one_message,
                        const ModelShape& shape) {
  if (!wish.return_routed) return absl::OkStatus();
  const int64_t pairs = tokens * shape.moe_layers * wish.per_token.value_or(shape.experts_per_token);
  // Of the 4 MiB that clients of gRPC take, with an id of up to 3 bytes and a weight of 4.
  constexpr int64_t kMessagePairsMax = (int64_t{7} << 19) / 7;
  if (in_one_message && pairs > kMessagePairsMax) {
    return absl::InvalidArgumentError(absl::StrCat("return_routed_experts: ", tokens, " tokens have ", pairs,
                                                   " experts, more than the ", kMessagePairsMax,
                                                   " that a message holds; send shorter texts or fewer continuations"));
  }
  return call.hold_bytes == nullptr ? absl::OkStatus()
                                    : call.hold_bytes(static_cast<size_t>(pairs * RoutedExperts::kPairBytes));
}

absl::Status CheckTokens(absl::string_view field, size_t tokens, int tokens_max) {
  if (tokens_max == 0 || tokens <= static_cast<size_t>(tokens_max)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", tokens, " tokens are more than ", tokens_max));
}

absl::string_view FieldOf(const PromptInput& input) {
  if (std::holds_alternative<std::string>(input)) return "prompt";
  return std::holds_alternative<std::vector<int32_t>>(input) ? "token_ids" : "chat";
}

absl::StatusOr<RequestWork> TakePlace(const CallContext& call, AdmissionController::Permit* permit,
                                      size_t prompt_tokens, int output_tokens, int moe_layers, PathwayQuery& query) {
  RequestWork work = WorkOf(query.settings, prompt_tokens, output_tokens, moe_layers);
  const int wanted = work.steps;
  if (permit != nullptr) C3PO_RETURN_IF_ERROR(permit->Take(work, call.deadline));
  if (work.steps < wanted) {
    query.settings.steps = work.steps;
    query.shortened = true;
  }
  C3PO_RETURN_IF_ERROR(call.Charge(work.Cost()));
  return work;
}

}  // namespace c3po
