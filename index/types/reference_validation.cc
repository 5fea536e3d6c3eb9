#include "index/types/reference_validation.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"
#include "index/base/utf8.h"
#include "index/types/reference_id.h"

namespace c3po {
namespace {

constexpr size_t kCollectionBytesMax = 128;
constexpr double kUnitTolerance = 1e-3;

absl::Status Invalid(absl::string_view field, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", problem));
}

absl::Status CheckText(absl::string_view field, absl::string_view text, size_t bytes_max) {
  if (text.empty()) return Invalid(field, "must not be empty");
  if (text.size() > bytes_max) return Invalid(field, absl::StrCat(text.size(), " bytes, at most ", bytes_max));
  if (!IsValidUtf8(text)) return Invalid(field, "not valid UTF-8");
  return absl::OkStatus();
}

absl::Status CheckChoices(const ReferenceSample& sample, const SampleLimits& limits) {
  const auto& choices = sample.choices;
  if (choices.empty()) return absl::OkStatus();
  if (choices.size() == 1) return Invalid("choices", "has one entry; leave it out or give at least two");
  if (choices.size() > limits.choices_max) {
    return Invalid("choices", absl::StrCat(choices.size(), " entries, at most ", limits.choices_max));
  }
  for (size_t i = 0; i < choices.size(); ++i) {
    const std::string field = absl::StrCat("choices[", i, "]");
    C3PO_RETURN_IF_ERROR(CheckText(field, choices[i], limits.answer_bytes_max));
    const size_t first = std::find(choices.begin(), choices.end(), choices[i]) - choices.begin();
    if (first < i) return Invalid(field, absl::StrCat("same as choices[", first, "]"));
  }
  if (std::find(choices.begin(), choices.end(), sample.answer) == choices.end()) {
    return Invalid("answer", "not among `choices`");
  }
  return absl::OkStatus();
}

absl::Status CheckMetadata(const ReferenceSample& sample, const SampleLimits& limits) {
  if (sample.metadata.size() > limits.metadata_entries_max) {
    return Invalid("metadata", absl::StrCat(sample.metadata.size(), " entries, at most ", limits.metadata_entries_max));
  }
  size_t bytes = 0;
  for (const auto& [key, value] : sample.metadata) {
    if (!IsValidUtf8(key)) return Invalid("metadata", "a key is not valid UTF-8");
    if (!IsValidUtf8(value)) return Invalid(absl::StrCat("metadata[\"", key, "\"]"), "not valid UTF-8");
    bytes += key.size() + value.size();
  }
  if (bytes > limits.metadata_bytes_max) {
    return Invalid("metadata", absl::StrCat(bytes, " bytes, at most ", limits.metadata_bytes_max));
  }
  return absl::OkStatus();
}

absl::Status CheckOwnId(const ReferenceSample& sample, const SampleLimits& limits) {
  if (sample.id.size() > limits.id_bytes_max) {
    return Invalid("id", absl::StrCat(sample.id.size(), " bytes, at most ", limits.id_bytes_max));
  }
  for (const char c : sample.id) {
    // No colon: COLLECTION:ID must not be the id of another collection's sample, and collections' names may hold one.
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && !absl::StrContains("._-", c)) {
      return Invalid("id", "may hold letters, digits and ._- only");
    }
  }
  return absl::OkStatus();
}

absl::Status CheckEmbedding(absl::Span<const float> embedding) {
  if (embedding.empty()) return Invalid("embedding", "must not be empty");
  double squares = 0;
  for (size_t i = 0; i < embedding.size(); ++i) {
    if (!std::isfinite(embedding[i])) return Invalid(absl::StrCat("embedding[", i, "]"), "not finite");
    squares += static_cast<double>(embedding[i]) * embedding[i];
  }
  const double length = std::sqrt(squares);
  if (std::abs(length - 1) > kUnitTolerance)
    return Invalid("embedding", absl::StrCat("has length ", NumberText(length), ", not 1"));
  return absl::OkStatus();
}

absl::Status CheckPathway(const Pathway& pathway) {
  if (pathway.layers <= 0 || pathway.experts <= 0) return Invalid("pathway", "needs at least one layer and one expert");
  const size_t wanted = static_cast<size_t>(pathway.layers) * static_cast<size_t>(pathway.experts);
  if (pathway.weights.size() != wanted) {
    return Invalid("pathway", absl::StrCat(pathway.weights.size(), " weights, not layers * experts = ", wanted));
  }
  for (int layer = 0; layer < pathway.layers; ++layer) {
    const std::string field = absl::StrCat("pathway[", layer, "]");
    double sum = 0;
    for (float weight : pathway.Row(layer)) {
      if (!std::isfinite(weight) || weight < 0) return Invalid(field, "a weight is negative or not finite");
      sum += weight;
    }
    if (std::abs(sum - 1) > kUnitTolerance) return Invalid(field, absl::StrCat("sums to ", NumberText(sum), ", not 1"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status ValidateSample(const ReferenceSample& sample, const SampleLimits& limits) {
  C3PO_RETURN_IF_ERROR(CheckText("prompt", sample.prompt, limits.prompt_bytes_max));
  C3PO_RETURN_IF_ERROR(CheckText("answer", sample.answer, limits.answer_bytes_max));
  C3PO_RETURN_IF_ERROR(CheckChoices(sample, limits));
  C3PO_RETURN_IF_ERROR(CheckOwnId(sample, limits));
  return CheckMetadata(sample, limits);
}

absl::Status ValidateCollectionName(absl::string_view collection) {
  C3PO_RETURN_IF_ERROR(CheckText("collection", collection, kCollectionBytesMax));
  for (unsigned char c : collection) {
    if (absl::ascii_iscntrl(c)) return Invalid("collection", "holds a control character");
  }
  return absl::OkStatus();
}

absl::Status ValidateRecord(const ReferenceRecord& record, const SampleLimits& limits) {
  C3PO_RETURN_IF_ERROR(ValidateCollectionName(record.collection));
  C3PO_RETURN_IF_ERROR(ValidateSample(record.sample, limits));
  const std::string id = ReferenceId(record.collection, record.sample);
  if (record.id != id) return Invalid("id", absl::StrCat("\"", record.id, "\" is not the sample's id ", id));
  return ValidateComputed(record);
}

absl::Status ValidateComputed(const ReferenceRecord& record) {
  if (record.model_digest.empty()) return Invalid("model_digest", "must not be empty");
  if (record.embedder_digest.empty()) return Invalid("embedder_digest", "must not be empty");
  C3PO_RETURN_IF_ERROR(CheckEmbedding(record.embedding));
  return CheckPathway(record.pathway);
}

}  // namespace c3po
