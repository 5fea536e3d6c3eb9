#ifndef C3PO_SERVER_EMBED_BERT_CONFIG_H_
#define C3PO_SERVER_EMBED_BERT_CONFIG_H_

#include <string>

#include "absl/status/statusor.h"

namespace c3po {

// What the JSON files of a sentence-transformers folder say, checked.
struct BertConfig {
  int vocabulary = 0;    // vocab_size
  int hidden = 0;        // hidden_size; a multiple of heads
  int layers = 0;        // num_hidden_layers
  int heads = 0;         // num_attention_heads
  int intermediate = 0;  // intermediate_size
  int positions = 0;     // max_position_embeddings
  int token_types = 0;   // type_vocab_size
  double norm_eps = 0;   // layer_norm_eps
  int max_tokens = 0;    // max_seq_length, at most `positions`; at least 2
};

// `config_json` is the text of folder/config.json. InvalidArgument names the file and the field that is missing, out of
// range, or set to what SentenceEncoder does not implement.
absl::StatusOr<BertConfig> ReadBertConfig(const std::string& folder, const std::string& config_json);

}  // namespace c3po

#endif  // C3PO_SERVER_EMBED_BERT_CONFIG_H_
