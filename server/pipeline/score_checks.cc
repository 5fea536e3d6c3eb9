#include "server/pipeline/score_checks.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/pipeline/score_tokens.h"

namespace c3po {

absl::Status CheckContinuations(const ScoreCall& call, const RequestLimits& limits) {
  const std::vector<std::string>& all = call.continuations;
  const absl::string_view field = ContinuationsField(call);
  const size_t least = call.choose ? 2 : 1;
  if (all.size() < least) {
    return absl::InvalidArgumentError(absl::StrCat(field, ": must name at least ", call.choose ? "two" : "one"));
  }
  if (all.size() > static_cast<size_t>(limits.continuations_max)) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ": ", all.size(), " are more than ", limits.continuations_max));
  }
  std::unordered_map<std::string_view, size_t> seen;
  for (size_t i = 0; i < all.size(); ++i) {
    const std::string name = absl::StrCat(field, "[", i, "]: ");
    if (all[i].empty()) return absl::InvalidArgumentError(absl::StrCat(name, "must not be empty"));
    if (!call.choose) continue;
    if (const auto [first, is_new] = seen.emplace(all[i], i); !is_new)
      return absl::InvalidArgumentError(absl::StrCat(name, "is choices[", first->second, "] again"));
  }
  return absl::OkStatus();
}

absl::Status CheckOracle(const ScoreCall& call) {
  const bool oracle = call.optimization.method == Method::kOracle;
  if (!oracle && !call.oracle_answer) return absl::OkStatus();
  if (!call.context.may_use_oracle) {
    return absl::PermissionDeniedError(
        "optimization.method: ORACLE needs a server started with --allow-oracle, or the role administer where callers "
        "have roles");
  }
  if (!oracle) return absl::InvalidArgumentError("oracle_answer: only the method ORACLE may see the answer");
  if (!call.oracle_answer) return absl::InvalidArgumentError("oracle_answer: the method ORACLE needs it");
  const auto found = std::find(call.continuations.begin(), call.continuations.end(), *call.oracle_answer);
  if (found == call.continuations.end())
    return absl::InvalidArgumentError("oracle_answer: is not one of the continuations");
  return absl::OkStatus();
}

}  // namespace c3po
