#ifndef C3PO_INDEX_STORE_RECORD_ROW_H_
#define C3PO_INDEX_STORE_RECORD_ROW_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/store/reference_store.h"
#include "index/types/reference_record.h"
#include "index/types/reference_validation.h"

namespace c3po {

// A record as it lies in a row, whichever database holds it: encoding, checksum, and what adding one to another comes
// to. Pure and thread-safe.

// The values of a row, in the order of the table's columns, encoded as row_codec.h says. A view: whoever makes it keeps
// the bytes.
struct RecordRow {
  absl::string_view id, collection, prompt, answer;
  absl::string_view choices, metadata;  // JSON.
  int64_t successful = 0;
  absl::string_view model_digest, embedder_digest;
  absl::string_view embedding;  // float32.
  int64_t pathway_layers = 0, pathway_experts = 0;
  absl::string_view pathway;  // float32.
  int64_t created_unix_seconds = 0;

  // RowChecksum over all of them.
  std::string Checksum() const;
};

// The row of `record`, which outlives it and stays as it is.
class EncodedRecord {
 public:
  explicit EncodedRecord(const ReferenceRecord& record);
  EncodedRecord(const EncodedRecord&) = delete;
  EncodedRecord& operator=(const EncodedRecord&) = delete;

  const RecordRow& row() const { return row_; }

 private:
  std::string choices_, metadata_, embedding_, pathway_;
  RecordRow row_;
};

// DataLoss, without the row's name: the row is damaged, as it does not match `checksum`, or cannot be decoded.
absl::StatusOr<ReferenceRecord> DecodeRecord(const RecordRow& row, absl::string_view checksum);

// InvalidArgument "records[i].FIELD: ...": what Add says of them (ValidateRecord).
absl::Status ValidateRecords(absl::Span<const ReferenceRecord> records, const SampleLimits& limits);

// What Add of a record does to the row with its id.
struct AddDecision {
  AddOutcome outcome = AddOutcome::kInserted;
  bool forgets_artifacts = false;  // Those of the reference that was there: its content was another.
};

// `exists`: a row with the id is there. `stored`: that row; null where there is none, or it is damaged: of such a row
// nothing is known, and it is written anew. `own_id`: the id is one that the sample brought. Any other id is made of
// the sample, so that prompt, answer and choices are the same; then the first metadata stay.
AddDecision DecideAdd(const RecordRow& added, bool own_id, bool exists, const RecordRow* stored);

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_RECORD_ROW_H_
