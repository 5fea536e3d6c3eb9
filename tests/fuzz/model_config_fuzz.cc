// config.json: refused, or of sizes whose arithmetic does not overflow.

#include "server/model/config/model_config.h"
#include "server/model/config/tensor_plan.h"
#include "tests/fuzz/fuzz_target.h"

C3PO_FUZZ_TARGET(input) {
  const auto config = c3po::ModelConfig::Parse(input, "config.json");
  if (!config.ok()) {
    C3PO_FUZZ_CHECK(!config.status().message().empty());
    return;
  }
  C3PO_FUZZ_CHECK(!config->moe_layers.empty() && static_cast<int>(config->moe_layers.size()) <= config->layers);
  C3PO_FUZZ_CHECK(config->experts_per_token >= 1 && config->experts_per_token <= config->experts);
  C3PO_FUZZ_CHECK(config->heads % config->kv_heads == 0 && config->rope_dim % 2 == 0);
  const c3po::ParameterCounts counts = c3po::CountParameters(*config);
  C3PO_FUZZ_CHECK(counts.active >= 0 && counts.active <= counts.total);
}
