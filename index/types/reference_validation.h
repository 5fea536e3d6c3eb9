#ifndef C3PO_INDEX_TYPES_REFERENCE_VALIDATION_H_
#define C3PO_INDEX_TYPES_REFERENCE_VALIDATION_H_

#include <cstddef>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "index/types/reference_record.h"

namespace c3po {

// Bounds of one sample, in bytes of UTF-8 or in entries. What a model's context holds is smaller; this keeps a mistaken
// import from filling the store.
struct SampleLimits {
  size_t prompt_bytes_max = 256 * 1024;
  size_t answer_bytes_max = 64 * 1024;  // Of the answer and of each choice.
  size_t choices_max = 256;  // As many as one Score request has continuations by default.
  size_t metadata_entries_max = 64;
  size_t metadata_bytes_max = 16 * 1024;  // Keys and values together.
  size_t id_bytes_max = 64;
};

// The functions below return OK or InvalidArgument, with a message that begins with the field's name, such as
// "choices[2]: same as choices[0]". Pure and thread-safe.

// A sample as reference_record.h describes it: prompt and answer not empty; choices empty, or at least two, all
// different, one equal to the answer; everything valid UTF-8 and within `limits`; an id of its own, where there is one,
// of letters, digits and ._-.
absl::Status ValidateSample(const ReferenceSample& sample, const SampleLimits& limits = SampleLimits());

// 1 to 128 bytes of UTF-8 without control characters. The field is named `collection`.
absl::Status ValidateCollectionName(absl::string_view collection);

// The collection's name, the sample, and: `id` is ReferenceId(collection, sample); both digests not empty; `embedding`
// not empty, finite, of length 1 within 1e-3; `pathway` has layers * experts weights, at least one, finite, not
// negative, each row summing to 1 within 1e-3.
absl::Status ValidateRecord(const ReferenceRecord& record, const SampleLimits& limits = SampleLimits());

// What of ValidateRecord is said of the digests, the embedding and the pathway.
absl::Status ValidateComputed(const ReferenceRecord& record);

}  // namespace c3po

#endif  // C3PO_INDEX_TYPES_REFERENCE_VALIDATION_H_
