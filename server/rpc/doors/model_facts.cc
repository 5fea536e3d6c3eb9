#include "server/rpc/doors/model_facts.h"

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "index/base/durable_file.h"
#include "index/base/json_nesting.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr int64_t kConfigBytesMax = int64_t{16} << 20;

int32_t IdOf(const nlohmann::json& config, const char* name) {
  const auto found = config.find(name);
  if (found == config.end() || !found->is_number_integer()) return 0;
  const auto id = found->get<int64_t>();
  return id >= 0 && id <= INT32_MAX ? static_cast<int32_t>(id) : 0;
}

}  // namespace

absl::StatusOr<ModelFacts> ModelFacts::Read(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/config.json");
  C3PO_ASSIGN_OR_RETURN(const std::string text, ReadWholeFile(path, kConfigBytesMax));
  if (NestsDeeperThan(text, kJsonLevelsMax)) return absl::InvalidArgumentError(absl::StrCat(path, ": nests too deep"));
  const nlohmann::json config = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": is not a JSON object"));
  ModelFacts facts;
  const auto type = config.find("model_type");
  if (type != config.end() && type->is_string()) facts.model_type = type->get<std::string>();
  facts.pad_token_id = IdOf(config, "pad_token_id");
  facts.bos_token_id = IdOf(config, "bos_token_id");
  return facts;
}

std::string SamplingDefaultsJson(const SamplingParams& defaults) {
  const nlohmann::ordered_json json = {{"temperature", defaults.temperature},
                                       {"top_p", defaults.top_p},
                                       {"top_k", defaults.top_k},
                                       {"min_p", defaults.min_p},
                                       {"repetition_penalty", defaults.repetition_penalty}};
  return json.dump();
}

}  // namespace c3po
