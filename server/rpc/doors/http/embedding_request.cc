#include "server/rpc/doors/http/embedding_request.h"

#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/rpc/doors/http/json_fields.h"
#include "server/rpc/doors/http/json_slices.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kInput[] = "input";

absl::Status Refuse(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

absl::Status ReadList(absl::string_view value, std::vector<PromptInput>& inputs) {
  JsonKind first = JsonKind::kNull;
  VisitElements(value, [&](absl::string_view element) {
    first = KindOf(element);
    return false;
  });
  if (first == JsonKind::kNumber) {
    C3PO_ASSIGN_OR_RETURN(std::vector<int32_t> ids, IdsOf(kInput, value));
    inputs.emplace_back(std::move(ids));
    return absl::OkStatus();
  }
  absl::Status status;
  VisitElements(value, [&](absl::string_view element) {
    const std::string path = absl::StrCat(kInput, "[", inputs.size(), "]");
    if (inputs.size() == EmbeddingRequest::kInputsMax) {
      status = Refuse(kInput, absl::StrCat("has more than ", EmbeddingRequest::kInputsMax, " texts"));
    } else if (first == JsonKind::kList) {
      auto ids = IdsOf(path, element);
      status = ids.status();
      if (ids.ok()) inputs.emplace_back(*std::move(ids));
    } else {
      auto text = TextOf(path, element);
      status = text.status();
      if (text.ok()) inputs.emplace_back(*std::move(text));
    }
    return status.ok();
  });
  return status;
}

Json VectorOf(const std::vector<float>& embedding, bool base64) {
  if (!base64) return embedding;
  std::string bytes(embedding.size() * sizeof(float), '\0');
  std::memcpy(bytes.data(), embedding.data(),
              bytes.size());  // Every processor that this is built for is little-endian.
  return absl::Base64Escape(bytes);
}

}  // namespace

absl::StatusOr<EmbeddingRequest> ReadEmbeddingRequest(absl::string_view body, absl::string_view served,
                                                      absl::string_view embedder, int dimension) {
  static constexpr KnownField kKnown[] = {
      {"input", FieldFate::kRead},           {"model", FieldFate::kRead},
      {"encoding_format", FieldFate::kRead}, {"dimensions", FieldFate::kRead},
      {"user", FieldFate::kNoEffect},        {"truncate_prompt_tokens", FieldFate::kRefused},
      {"priority", FieldFate::kRefused},     {"messages", FieldFate::kRefused}};
  EmbeddingRequest request;
  C3PO_ASSIGN_OR_RETURN(const JsonFields fields, JsonFields::Parse(body));
  C3PO_RETURN_IF_ERROR(fields.Check(kKnown, request.unknown));
  request.model = std::string(embedder);
  C3PO_RETURN_IF_ERROR(fields.Read("model", request.model));
  if (request.model != served && request.model != embedder)
    return absl::NotFoundError(absl::StrCat("model: the models here are ", served, " and, for embeddings, ", embedder));
  std::string format = "float";
  C3PO_RETURN_IF_ERROR(fields.Read("encoding_format", format));
  if (format != "float" && format != "base64") return Refuse("encoding_format", "must be float or base64");
  request.base64 = format == "base64";
  int dimensions = dimension;
  C3PO_RETURN_IF_ERROR(fields.Read("dimensions", dimensions));
  if (dimensions != dimension) return Refuse("dimensions", absl::StrCat("must be ", dimension, ", or left out"));
  const absl::string_view input = fields.Find(kInput);
  if (KindOf(input) == JsonKind::kList) {
    C3PO_RETURN_IF_ERROR(ReadList(input, request.inputs));
  } else if (!input.empty()) {
    C3PO_ASSIGN_OR_RETURN(std::string text, TextOf(kInput, input));
    request.inputs.emplace_back(std::move(text));
  }
  if (request.inputs.empty()) return Refuse(kInput, "must be a text, token ids, or a list of either, not empty");
  return request;
}

std::string EmbeddingAnswer(const EmbeddingRequest& request, const std::vector<std::vector<float>>& embeddings,
                            int prompt_tokens) {
  Json data = Json::array();
  for (size_t i = 0; i < embeddings.size(); ++i) {
    data.push_back({{"object", "embedding"}, {"index", i}, {"embedding", VectorOf(embeddings[i], request.base64)}});
  }
  const Json answer = {{"object", "list"},
                       {"data", std::move(data)},
                       {"model", request.model},
                       {"usage", {{"prompt_tokens", prompt_tokens}, {"total_tokens", prompt_tokens}}}};
  return answer.dump();
}

}  // namespace c3po
