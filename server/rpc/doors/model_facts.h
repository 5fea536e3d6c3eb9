#ifndef C3PO_SERVER_RPC_DOORS_MODEL_FACTS_H_
#define C3PO_SERVER_RPC_DOORS_MODEL_FACTS_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "server/types/sampling_params.h"

namespace c3po {

// What config.json says of a model that nothing here computes with, and gateways want to know.
struct ModelFacts {
  std::string model_type;                      // "olmoe"
  int32_t pad_token_id = 0, bos_token_id = 0;  // 0 where it names none, as vLLM has it
  // Of a folder that was loaded. InvalidArgument: the file was replaced since by one that is no JSON object. Others:
  // see ReadWholeFile.
  static absl::StatusOr<ModelFacts> Read(const std::string& folder);
};

// What a request gets that says nothing of sampling, as the JSON object that vLLM's workers tell gateways:
// {"temperature":0.0,"top_k":0,"top_p":1.0,"min_p":0.0,"repetition_penalty":1.0}.
std::string SamplingDefaultsJson(const SamplingParams& defaults);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_MODEL_FACTS_H_
