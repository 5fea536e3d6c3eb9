#include "server/grammar/form_vocabulary.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "server/grammar/byte_fields.h"

namespace c3po {

FormVocabulary VocabularyOf(const Tokenizer& tokenizer, int vocabulary, absl::Span<const int32_t> end_tokens) {
  FormVocabulary result;
  result.tokens.resize(static_cast<size_t>(vocabulary));
  const int known = std::min(vocabulary, tokenizer.vocabulary_size());
  for (int32_t id = 0; id < known; ++id) {
    if (!tokenizer.IsSpecial(id)) result.tokens[static_cast<size_t>(id)] = tokenizer.TokenBytes(id);
  }
  for (const int32_t id : end_tokens) {
    if (id < 0 || id >= vocabulary) continue;
    result.end_tokens.push_back(id);
    result.tokens[static_cast<size_t>(id)].clear();
  }
  return result;
}

std::string BytesOf(const FormVocabulary& vocabulary) {
  std::string bytes;
  AppendNumber(static_cast<uint32_t>(vocabulary.tokens.size()), bytes);
  for (const std::string& token : vocabulary.tokens) AppendText(token, bytes);
  AppendNumber(static_cast<uint32_t>(vocabulary.end_tokens.size()), bytes);
  for (const int32_t id : vocabulary.end_tokens) AppendNumber(static_cast<uint32_t>(id), bytes);
  return bytes;
}

absl::StatusOr<FormVocabulary> VocabularyFromBytes(absl::string_view bytes) {
  const absl::Status malformed = absl::InvalidArgumentError("vocabulary: malformed bytes");
  FormVocabulary vocabulary;
  const std::optional<uint32_t> tokens = TakeNumber(bytes);
  for (uint32_t i = 0; tokens && i < *tokens; ++i) {
    std::optional<std::string> token = TakeText(bytes);
    if (!token) return malformed;
    vocabulary.tokens.push_back(*std::move(token));
  }
  const std::optional<uint32_t> ends = TakeNumber(bytes);
  for (uint32_t i = 0; ends && i < *ends; ++i) {
    const std::optional<uint32_t> id = TakeNumber(bytes);
    if (!id || *id >= vocabulary.tokens.size()) return malformed;
    vocabulary.end_tokens.push_back(static_cast<int32_t>(*id));
  }
  if (!tokens || !ends || !bytes.empty()) return malformed;
  return vocabulary;
}

}  // namespace c3po
