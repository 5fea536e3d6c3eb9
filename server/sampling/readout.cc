#include "server/sampling/readout.h"

#include <algorithm>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/sampling/sampler.h"
#include "server/sampling/softmax.h"

namespace c3po {
namespace {

absl::Status ReadDistribution(absl::Span<const float> logits, absl::Span<const int32_t> tokens, Readout& readout) {
  const auto* const likeliest = std::max_element(logits.begin(), logits.end());
  readout.likeliest = static_cast<int32_t>(likeliest - logits.begin());
  readout.likeliest_logit = *likeliest;
  readout.log_normalizer = LogNormalizer(logits);
  for (const int32_t token : tokens) {
    if (token < 0 || static_cast<size_t>(token) >= logits.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " is outside the vocabulary of ", logits.size()));
    }
    readout.token_logits.push_back(logits[static_cast<size_t>(token)]);
  }
  return absl::OkStatus();
}

absl::StatusOr<SampledToken> Choose(absl::Span<const float> logits, const ReadoutRequest& request) {
  absl::Span<const uint32_t> allowed;
  if (request.matcher != nullptr) {
    C3PO_ASSIGN_OR_RETURN(allowed, request.matcher->NextTokens());
  }
  return Sample(logits, *request.sampling, request.context, request.position, allowed);
}

}  // namespace

void ReadOut(absl::Span<const float> logits, const ReadoutRequest& request, Readout& readout) {
  readout.token_logits.clear();
  readout.logits.clear();
  if (request.logits) readout.logits.assign(logits.begin(), logits.end());
  if (request.sampling != nullptr) {
    absl::StatusOr<SampledToken> token = Choose(logits, request);
    readout.status = token.status();
    if (token.ok()) readout.token = *std::move(token);
  } else {
    readout.status = CheckLogits(logits);
  }
  if (readout.status.ok() && request.distribution) readout.status = ReadDistribution(logits, request.tokens, readout);
}

}  // namespace c3po
