#ifndef C3PO_INDEX_STORE_ROW_CODEC_H_
#define C3PO_INDEX_STORE_ROW_CODEC_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

// How a record's composite fields lie in a row of the store. Pure and thread-safe. Decoding errors are DataLoss and say
// what is wrong with the bytes; the caller names the row.

// float32, little-endian, without a header.
std::string EncodeFloats(absl::Span<const float> values);
// DataLoss: not a whole number of floats, or one of them not finite.
absl::StatusOr<std::vector<float>> DecodeFloats(absl::string_view bytes);

// A JSON array of strings, and a JSON object of strings. The texts must be valid UTF-8.
std::string EncodeTexts(const std::vector<std::string>& texts);
absl::StatusOr<std::vector<std::string>> DecodeTexts(absl::string_view json);
std::string EncodeTextMap(const std::map<std::string, std::string>& texts);
absl::StatusOr<std::map<std::string, std::string>> DecodeTextMap(absl::string_view json);

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_ROW_CODEC_H_
