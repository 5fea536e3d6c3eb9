#ifndef C3PO_SERVER_PIPELINE_QUERY_EMBEDDING_H_
#define C3PO_SERVER_PIPELINE_QUERY_EMBEDDING_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "server/embed/embedder.h"
#include "server/types/model_runner.h"

namespace c3po {

// Where e(x) comes from: a sentence encoder, or the model itself (METHOD: mean-pooled states entering the first
// critical layer of the default settings, which prefill has anyway). Thread-safe as its Embedder is.
class QueryEmbedding {
 public:
  // `encoder` null: the model's own states, taken where `entry_layer` begins.
  QueryEmbedding(std::shared_ptr<Embedder> encoder, const ModelShape& shape, int entry_layer);

  bool from_model() const { return encoder_ == nullptr; }
  int entry_layer() const { return entry_layer_; }  // of the model's own states
  int dimension() const { return dimension_; }
  const std::string& digest() const { return digest_; }
  const std::string& name() const { return name_; }

  // Unit length [dimension]. Only with an encoder.
  absl::StatusOr<std::vector<float>> OfText(const std::string& text) const;
  // Row by row what OfText gives, in one call of the encoder; its errors of one text are those of all.
  absl::StatusOr<std::vector<std::vector<float>>> OfTexts(absl::Span<const std::string> texts) const;
  // Unit length, from PromptCapture::mean_hidden or state. Internal: they are all zero or not finite.
  static absl::StatusOr<std::vector<float>> OfStates(std::vector<float> mean_hidden);

 private:
  const std::shared_ptr<Embedder> encoder_;
  const int entry_layer_;
  int dimension_;
  std::string digest_, name_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_QUERY_EMBEDDING_H_
