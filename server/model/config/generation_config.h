#ifndef C3PO_SERVER_MODEL_CONFIG_GENERATION_CONFIG_H_
#define C3PO_SERVER_MODEL_CONFIG_GENERATION_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace c3po {

// A model folder's generation_config.json: how its authors want answers to be generated. Only its end tokens are taken.
// How to sample is the request's to say, and greedy by default, so that a folder does not change answers unseen.
struct GenerationConfig {
  std::vector<int32_t> eos_token_ids;
  std::vector<std::string> left;  // Names of the fields not taken, without those that only describe the file.

  // An empty one where the folder has no such file, and of a GGUF file, which says its end tokens with the rest.
  // InvalidArgument: malformed JSON, or an eos_token_id that is none of the model's `vocabulary_size` ids, naming file
  // and field.
  static absl::StatusOr<GenerationConfig> Read(const std::string& folder, int vocabulary_size);
};

// The tokens that end an answer: those of config.json, then those that generation_config.json adds. Either file may
// know one that the other lacks; none of them belongs into an answer.
std::vector<int32_t> EndTokens(const std::vector<int32_t>& of_config, const GenerationConfig& generation);

}  // namespace c3po

#endif  // C3PO_SERVER_MODEL_CONFIG_GENERATION_CONFIG_H_
