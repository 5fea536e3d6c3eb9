#ifndef C3PO_INDEX_STORE_POSTGRES_POSTGRES_VALUES_H_
#define C3PO_INDEX_STORE_POSTGRES_POSTGRES_VALUES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace c3po {

// The parameters $1, $2, ... of a statement, in PostgreSQL's binary format: numbers are big-endian, an array is
// dimensions, whether it has NULLs, the elements' type, size and lower bound, then each element behind its length
// (src/backend/utils/adt/arrayfuncs.c, array_recv). Bytes are copied, once. A plain value.
class PostgresValues {
 public:
  PostgresValues& Integer(int64_t value);                            // int8
  PostgresValues& Bytes(absl::string_view bytes);                    // bytea
  PostgresValues& Text(absl::string_view text);                      // text
  PostgresValues& IntegerArray(absl::Span<const int64_t> values);    // int8[]
  PostgresValues& BytesArray(absl::Span<const std::string> values);  // bytea[]
  PostgresValues& BytesArray(absl::Span<const absl::string_view> values);

  size_t size() const { return values_.size(); }
  uint32_t type(size_t i) const { return types_[i]; }
  const std::string& value(size_t i) const { return values_[i]; }

 private:
  PostgresValues& Add(uint32_t type, std::string value);

  std::vector<uint32_t> types_;  // Object identifiers of pg_type, which are the same in every database.
  std::vector<std::string> values_;
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_POSTGRES_POSTGRES_VALUES_H_
