#ifndef C3PO_INDEX_STORE_ROW_CODEC_H_
#define C3PO_INDEX_STORE_ROW_CODEC_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "index/base/sha256.h"

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

// The checksum of a row: SHA-256 over its values in the order of the table's columns, each preceded by its length as
// eight bytes, little-endian; an integer is eight bytes, little-endian. It is over the bytes as they lie in the row, so
// a row can be checked whose contents cannot be decoded.
class RowChecksum {
 public:
  void Add(absl::string_view bytes);
  void Add(int64_t value);
  // 32 bytes. Ends the computation.
  std::string Digest();

 private:
  Sha256 hash_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_ROW_CODEC_H_
