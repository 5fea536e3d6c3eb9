#ifndef C3PO_SERVER_EMBED_SENTENCE_ENCODER_H_
#define C3PO_SERVER_EMBED_SENTENCE_ENCODER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "server/compute/device_queue.h"
#include "server/embed/embedder.h"

namespace c3po {

// A sentence-transformers folder of the BERT family (all-MiniLM-L6-v2 is what the public C3PO implementation uses):
//   h = BertModel(tokens)                      post-norm encoder, erf-GELU, learned positions; arXiv 1810.04805
//   e = mean of h over the text's tokens       [CLS] and [SEP] included; arXiv 1908.10084
//   row = e / |e|
// in float32, whatever dtype the folder stores (F32, F16, BF16). Weights lie and all of this is computed where the
// queue that it is given says, beside the engine; Embed waits for that queue's work alone. The words' embeddings, half
// of MiniLM's weights, stay in model.safetensors, from which Embed reads a row for each token (StoredRows).
class SentenceEncoder : public Embedder {
 public:
  // Token ids of a text with its special tokens, unpadded and not truncated: [CLS] ... [SEP]. Must be thread-safe.
  using Encode = std::function<absl::StatusOr<std::vector<int32_t>>(absl::string_view text)>;

  // How the layers' matrices are held, as they are (kFloat32) or rounded to bfloat16: MiniLM's 43 or 21 MB. Rounding
  // turns an embedding by a cosine of 0.99999: enough to swap neighbors that are nearly as near, so that it has a
  // digest of its own. Products are float32 in either.
  enum class Weights { kFloat32, kBfloat16 };

  // `folder` holds config.json and model.safetensors; sentence_bert_config.json, modules.json, the config.json of the
  // pooling that it names (else 1_Pooling) and config_sentence_transformers.json are obeyed where they exist. `queue`:
  // of the engine's backend (Backend::NewQueue), not null. NotFound: a file or a tensor is missing. InvalidArgument: a
  // damaged file, or a setting that is not implemented, by its name (anything but mean pooling, hidden_act other than
  // "gelu", relative positions, ...). Internal: libtorch failed, as where the device's memory runs out.
  static absl::StatusOr<std::unique_ptr<SentenceEncoder>> Load(const std::string& folder,
                                                               std::shared_ptr<DeviceQueue> queue, Encode encode,
                                                               Weights weights = Weights::kFloat32);
  ~SentenceEncoder() override;

  // A text of more than max_tokens() tokens keeps its first max_tokens() - 1 and its last one, [SEP].
  // InvalidArgument: a text without tokens, or a token outside the vocabulary (another model's tokenizer). An error of
  // `encode` comes back with the text's index. Internal: libtorch failed, a vector is not finite, or model.safetensors
  // was written to meanwhile.
  // Unavailable: the device failed, which its record says from then on (index/base/device_failure.h).
  absl::StatusOr<std::vector<std::vector<float>>> Embed(absl::Span<const std::string> texts) override;

  int dimension() const override;
  // SHA-256 of "sentence_encoder\n<Checkpoint::Digest()>\n<max_tokens()>\n" and the bytes of the folder's
  // tokenizer.json, when it has one; of kBfloat16 with "sentence_encoder bfloat16\n" at the beginning.
  std::string digest() const override;
  // NameOfFolder of the folder (server/weights/model_folder.h).
  std::string name() const override;
  // sentence_bert_config.json's max_seq_length, else config.json's max_position_embeddings.
  int max_tokens() const;
  int64_t weight_bytes() const;  // In memory: without the words' embeddings.

 private:
  struct Model;
  explicit SentenceEncoder(std::unique_ptr<const Model> model);

  const std::unique_ptr<const Model> model_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_EMBED_SENTENCE_ENCODER_H_
