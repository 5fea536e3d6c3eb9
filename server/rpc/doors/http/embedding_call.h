#ifndef C3PO_SERVER_RPC_DOORS_HTTP_EMBEDDING_CALL_H_
#define C3PO_SERVER_RPC_DOORS_HTTP_EMBEDDING_CALL_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/admission/admission_controller.h"
#include "server/pipeline/generation_types.h"
#include "server/rpc/doors/http/embedding_request.h"
#include "server/rpc/doors/http/http_call.h"

namespace c3po {

// POST /v1/embeddings: the vectors by which the server finds references (--embedder), of unit length. One text after
// the other, each a job of the workers, under one place of admission. usage.prompt_tokens are the model's tokens of the
// texts.
class EmbeddingCall final : public HttpCall {
 public:
  EmbeddingCall(const HttpRequest& request, const ServiceParts& parts);

 protected:
  absl::Status Begin(const std::string& body) override;

 private:
  absl::Status EmbedNext();
  void OnEmbedding(absl::StatusOr<std::vector<float>> embedding);
  absl::StatusOr<std::string> TextOf(const PromptInput& input);

  const std::string header_id_;
  EmbeddingRequest request_;
  CallContext context_;
  std::unique_ptr<AdmissionController::Permit> permit_;
  std::vector<std::vector<float>> embeddings_;
  int prompt_tokens_ = 0;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_HTTP_EMBEDDING_CALL_H_
