#include "server/rpc/doors/optimization_choice.h"

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "index/types/optimization_terms.h"

namespace c3po {
namespace {

constexpr absl::string_view kPrefix = "c3po-";

}  // namespace

absl::StatusOr<v1::Method> MethodOfWord(absl::string_view field, absl::string_view word) {
  std::vector<absl::string_view> words;
  for (const Term<Method>& term : TermsOf<Method>()) {
    if (word == term.flag || word == term.name) return static_cast<v1::Method>(term.number);
    words.emplace_back(term.flag);
  }
  return absl::InvalidArgumentError(absl::StrCat(field, ": is none of ", absl::StrJoin(words, ", ")));
}

absl::Status ChooseByModelName(absl::string_view field, absl::string_view name, absl::string_view served,
                               v1::OptimizationOptions& options) {
  if (name == served) return absl::OkStatus();
  absl::string_view rest = name;
  if (!absl::ConsumePrefix(&rest, served) || !absl::ConsumePrefix(&rest, "@"))
    return absl::NotFoundError(absl::StrCat(field, ": the model here is ", served));
  if (rest.empty()) return absl::InvalidArgumentError(absl::StrCat(field, ": names no collection after the @"));
  if (options.has_collection() && options.collection() != rest)
    return absl::InvalidArgumentError(absl::StrCat(field, ": names another collection than the parameters do"));
  options.set_collection(std::string(rest));
  return absl::OkStatus();
}

absl::StatusOr<v1::OptimizationOptions> OptimizationFromMetadata(
    const std::multimap<grpc::string_ref, grpc::string_ref>& metadata) {
  v1::OptimizationOptions options;
  for (const auto& [raw_key, raw_value] : metadata) {
    const absl::string_view key(raw_key.data(), raw_key.size()), value(raw_value.data(), raw_value.size());
    if (!absl::StartsWith(key, kPrefix)) continue;
    if (key != kCollectionKey && key != kMethodKey && key != kMinGenerationKey) {
      return absl::InvalidArgumentError(absl::StrCat(key, ": is none of ", kCollectionKey, ", ", kMethodKey, " and ",
                                                     kMinGenerationKey, ", which choose the optimization"));
    }
    if (metadata.count(raw_key) > 1) return absl::InvalidArgumentError(absl::StrCat(key, ": is given twice"));
    if (value.empty()) return absl::InvalidArgumentError(absl::StrCat(key, ": must not be empty"));
    uint64_t generation = 0;
    if (key == kCollectionKey) {
      options.set_collection(std::string(value));
    } else if (key == kMinGenerationKey) {
      if (!absl::SimpleAtoi(value, &generation)) return absl::InvalidArgumentError(absl::StrCat(key, ": is no number"));
      options.set_min_index_generation(generation);
    } else {
      C3PO_ASSIGN_OR_RETURN(const v1::Method method, MethodOfWord(key, value));
      options.set_method(method);
    }
  }
  return options;
}

}  // namespace c3po
