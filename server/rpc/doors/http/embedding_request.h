#ifndef C3PO_SERVER_RPC_DOORS_HTTP_EMBEDDING_REQUEST_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_EMBEDDING_REQUEST_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/pipeline/generation_types.h"

namespace c3po {

// The body of POST /v1/embeddings.
struct EmbeddingRequest {
  static constexpr size_t kInputsMax = 2048;  // OpenAI's.

  std::vector<PromptInput> inputs;  // Texts or token ids of the model; one or more.
  bool base64 = false;              // encoding_format: float32, little-endian.
  std::string model;
  std::vector<std::string> unknown;
};

// InvalidArgument "FIELD: ...", also of `dimensions` other than `dimension`. NotFound: a model that is neither `served`
// nor `embedder`. Pure and thread-safe.
absl::StatusOr<EmbeddingRequest> ReadEmbeddingRequest(absl::string_view body, absl::string_view served,
                                                      absl::string_view embedder, int dimension);
// The whole answer. Pure and thread-safe.
std::string EmbeddingAnswer(const EmbeddingRequest& request, const std::vector<std::vector<float>>& embeddings,
                            int prompt_tokens);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_EMBEDDING_REQUEST_H_
