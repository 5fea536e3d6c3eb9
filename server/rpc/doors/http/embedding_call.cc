#include "server/rpc/doors/http/embedding_call.h"

#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "index/base/escaped_exception.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/http/ignored_fields.h"
#include "server/rpc/on_worker.h"

namespace c3po {
namespace {

constexpr char kInput[] = "input";

absl::Status Refuse(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

}  // namespace

EmbeddingCall::EmbeddingCall(const HttpRequest& request, const ServiceParts& parts)
    : HttpCall(request, parts, Metrics::Rpc::kOpenAiEmbeddings), header_id_(request.request_id) {}

absl::Status EmbeddingCall::Begin(const std::string& body) {
  const PipelineParts& pipeline = parts().pipeline_parts;
  C3PO_ASSIGN_OR_RETURN(request_, ReadEmbeddingRequest(body, pipeline.model->shape().name, pipeline.embedding->name(),
                                                       pipeline.embedding->dimension()));
  context_ = call().Context(header_id_);
  LogIgnoredFields(request_.unknown, call().request_id());
  if (pipeline.admission != nullptr) {
    C3PO_ASSIGN_OR_RETURN(permit_, pipeline.admission->Enter(call().caller()));
  }
  return EmbedNext();
}

// On a worker, as it tokenizes or decodes.
absl::StatusOr<std::string> EmbeddingCall::TextOf(const PromptInput& input) {
  const PromptText& text = *parts().pipeline_parts.text;
  const std::string field =
      request_.inputs.size() == 1 ? std::string(kInput) : absl::StrCat(kInput, "[", embeddings_.size(), "]");
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&input)) {
    absl::StatusOr<PromptText::Prompt> prompt = text.OfTokens(*ids);
    if (!prompt.ok()) return Refuse(field, prompt.status().message());
    prompt_tokens_ += static_cast<int>(ids->size());
    if (prompt->text.empty()) return Refuse(field, "has no text");
    return std::move(prompt->text);
  }
  const auto& words = std::get<std::string>(input);
  const auto tokens = text.tokenizer()->Encode(words, /*add_special_tokens=*/true);
  if (!tokens.ok()) return Refuse(field, tokens.status().message());
  if (words.empty()) return Refuse(field, "must not be empty");
  prompt_tokens_ += static_cast<int>(tokens->size());
  return words;
}

absl::Status EmbeddingCall::EmbedNext() {
  const auto self = std::static_pointer_cast<EmbeddingCall>(shared_from_this());
  const auto embed = [self]() -> absl::Status {
    C3PO_RETURN_IF_ERROR(self->call().CheckCancelled());
    C3PO_ASSIGN_OR_RETURN(std::string text, self->TextOf(self->request_.inputs[self->embeddings_.size()]));
    return self->parts().pipeline->Embed(
        self->context_, std::move(text),
        [self](absl::StatusOr<std::vector<float>> embedding) { self->OnEmbedding(std::move(embedding)); });
  };
  return GiveToWorker(parts(), embed, [self](const absl::Status& status) { self->End(status); });
}

void EmbeddingCall::OnEmbedding(absl::StatusOr<std::vector<float>> embedding) {
  const absl::Status status = CatchEscaped(ThreadKind::kWorker, [&]() -> absl::Status {
    C3PO_RETURN_IF_ERROR(embedding.status());
    C3PO_RETURN_IF_ERROR(call().HoldBytes(embedding->size() * sizeof(float)));
    embeddings_.push_back(*std::move(embedding));
    if (embeddings_.size() < request_.inputs.size()) return EmbedNext();
    permit_ = nullptr;
    Answer(EmbeddingAnswer(request_, embeddings_, prompt_tokens_));
    End(absl::OkStatus());
    return absl::OkStatus();
  });
  if (!status.ok()) {
    permit_ = nullptr;
    End(status);
  }
}

}  // namespace c3po
