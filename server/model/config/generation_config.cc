#include "server/model/config/generation_config.h"

#include <algorithm>

#include "index/base/durable_file.h"
#include "index/base/status_macros.h"
#include "server/model/config/config_fields.h"
#include "server/weights/checkpoint.h"
#include "server/weights/gguf_parts.h"

namespace c3po {

absl::StatusOr<GenerationConfig> GenerationConfig::Read(const std::string& folder, int vocabulary_size) {
  GenerationConfig config;
  if (IsGgufPath(folder)) return config;
  const std::string path = folder + "/generation_config.json";
  const absl::StatusOr<std::string> text = ReadWholeFile(path, kConfigBytesMax);
  if (absl::IsNotFound(text.status())) return config;
  C3PO_RETURN_IF_ERROR(text.status());
  C3PO_ASSIGN_OR_RETURN(ConfigFields fields, ConfigFields::Parse(*text, path));
  for (const int id : fields.Counts("eos_token_id")) {
    if (id >= vocabulary_size) fields.Fail("eos_token_id", "must be token ids of the vocabulary");
    config.eos_token_ids.push_back(id);
  }
  C3PO_RETURN_IF_ERROR(fields.status());
  for (const char* descriptive : {"_from_model_config", "transformers_version", "bos_token_id", "pad_token_id"}) {
    fields.Has(descriptive);
  }
  config.left = fields.NotAsked();
  return config;
}

std::vector<int32_t> EndTokens(const std::vector<int32_t>& of_config, const GenerationConfig& generation) {
  std::vector<int32_t> ids = of_config;
  for (const int32_t id : generation.eos_token_ids) {
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return ids;
}

}  // namespace c3po
