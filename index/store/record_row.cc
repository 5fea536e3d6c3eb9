#include "index/store/record_row.h"

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/store/row_codec.h"
#include "index/types/reference_id.h"

namespace c3po {

std::string RecordRow::Checksum() const {
  RowChecksum checksum;
  for (const absl::string_view text : {id, collection, prompt, answer, choices, metadata}) checksum.Add(text);
  checksum.Add(successful);
  for (const absl::string_view bytes : {model_digest, embedder_digest, embedding}) checksum.Add(bytes);
  checksum.Add(pathway_layers);
  checksum.Add(pathway_experts);
  checksum.Add(pathway);
  checksum.Add(created_unix_seconds);
  return checksum.Digest();
}

EncodedRecord::EncodedRecord(const ReferenceRecord& record)
    : choices_(EncodeTexts(record.sample.choices)),
      metadata_(EncodeTextMap(record.sample.metadata)),
      embedding_(EncodeFloats(record.embedding)),
      pathway_(EncodeFloats(record.pathway.weights)),
      row_{record.id,
           record.collection,
           record.sample.prompt,
           record.sample.answer,
           choices_,
           metadata_,
           int64_t{record.successful},
           record.model_digest,
           record.embedder_digest,
           embedding_,
           int64_t{record.pathway.layers},
           int64_t{record.pathway.experts},
           pathway_,
           record.created_unix_seconds} {}

absl::StatusOr<ReferenceRecord> DecodeRecord(const RecordRow& row, absl::string_view checksum) {
  if (checksum != row.Checksum()) return absl::DataLossError("it does not match its checksum");
  ReferenceRecord record;
  record.id = std::string(row.id);
  record.collection = std::string(row.collection);
  record.sample.prompt = std::string(row.prompt);
  record.sample.answer = std::string(row.answer);
  C3PO_ASSIGN_OR_RETURN(record.sample.choices, DecodeTexts(row.choices));
  C3PO_ASSIGN_OR_RETURN(record.sample.metadata, DecodeTextMap(row.metadata));
  record.sample.id = std::string(OwnIdOf(record.collection, record.id));
  record.successful = row.successful != 0;
  record.model_digest = std::string(row.model_digest);
  record.embedder_digest = std::string(row.embedder_digest);
  C3PO_ASSIGN_OR_RETURN(record.embedding, DecodeFloats(row.embedding));
  C3PO_ASSIGN_OR_RETURN(record.pathway.weights, DecodeFloats(row.pathway));
  const int64_t layers = row.pathway_layers, experts = row.pathway_experts;
  const int64_t weights = static_cast<int64_t>(record.pathway.weights.size());
  if (layers <= 0 || experts <= 0 || weights % layers != 0 || weights / layers != experts) {
    return absl::DataLossError(absl::StrCat("a pathway of ", layers, " x ", experts, " has ", weights, " weights"));
  }
  record.pathway.layers = static_cast<int>(layers);
  record.pathway.experts = static_cast<int>(experts);
  record.created_unix_seconds = row.created_unix_seconds;
  return record;
}

absl::Status ValidateRecords(absl::Span<const ReferenceRecord> records, const SampleLimits& limits) {
  for (size_t i = 0; i < records.size(); ++i) {
    const absl::Status status = ValidateRecord(records[i], limits);
    if (!status.ok()) return absl::Status(status.code(), absl::StrCat("records[", i, "].", status.message()));
  }
  return absl::OkStatus();
}

AddDecision DecideAdd(const RecordRow& added, bool own_id, bool exists, const RecordRow* stored) {
  const bool same_makers = stored != nullptr && stored->model_digest == added.model_digest &&
                           stored->embedder_digest == added.embedder_digest;
  const bool same_content =
      !own_id || (stored != nullptr && stored->prompt == added.prompt && stored->answer == added.answer &&
                  stored->choices == added.choices && stored->metadata == added.metadata);
  if (same_makers && same_content) return {AddOutcome::kDuplicate, false};
  return {exists ? AddOutcome::kReplaced : AddOutcome::kInserted, exists && !same_content};
}

}  // namespace c3po
