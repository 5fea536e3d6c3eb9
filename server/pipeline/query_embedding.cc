#include "server/pipeline/query_embedding.h"

#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/types/status_details.h"

namespace c3po {

QueryEmbedding::QueryEmbedding(std::shared_ptr<Embedder> encoder, const ModelShape& shape, int entry_layer)
    : encoder_(std::move(encoder)), entry_layer_(entry_layer) {
  if (encoder_) {
    dimension_ = encoder_->dimension();
    digest_ = encoder_->digest();
    name_ = encoder_->name();
  } else {
    dimension_ = shape.hidden_size;
    digest_ = absl::StrCat(shape.digest, ":layer", entry_layer);
    name_ = absl::StrCat("mean of ", shape.name, "'s states entering layer ", entry_layer);
  }
}

absl::StatusOr<std::vector<float>> QueryEmbedding::OfText(const std::string& text) const {
  C3PO_ASSIGN_OR_RETURN(std::vector<std::vector<float>> rows, encoder_->Embed({text}));
  return std::move(rows.front());
}

absl::StatusOr<std::vector<std::vector<float>>> QueryEmbedding::OfTexts(absl::Span<const std::string> texts) const {
  return encoder_->Embed(texts);
}

absl::StatusOr<std::vector<float>> QueryEmbedding::OfStates(std::vector<float> mean_hidden) {
  double square = 0;
  for (float x : mean_hidden) square += double{x} * x;
  if (!(square > 0) || !std::isfinite(square))
    return NotANumberError("the prompt's mean hidden state has no direction");
  const double scale = 1 / std::sqrt(square);
  for (float& x : mean_hidden) x = static_cast<float>(x * scale);
  return mean_hidden;
}

}  // namespace c3po
