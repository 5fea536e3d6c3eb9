#include "index/store/postgres/postgres_values.h"

#include <utility>

namespace c3po {
namespace {

// src/include/catalog/pg_type.dat
constexpr uint32_t kBytea = 17, kInt8 = 20, kText = 25, kByteaArray = 1001, kInt8Array = 1016;

template <typename T>
void AppendBigEndian(T value, std::string& bytes) {
  for (int shift = 8 * (static_cast<int>(sizeof(T)) - 1); shift >= 0; shift -= 8) {
    bytes.push_back(static_cast<char>(value >> shift & 0xff));
  }
}

std::string ArrayHeader(uint32_t element_type, size_t elements) {
  std::string bytes;
  AppendBigEndian<uint32_t>(elements > 0, bytes);  // Dimensions: an empty array has none.
  AppendBigEndian<uint32_t>(0, bytes);             // No element is NULL.
  AppendBigEndian<uint32_t>(element_type, bytes);
  if (elements == 0) return bytes;
  AppendBigEndian<uint32_t>(static_cast<uint32_t>(elements), bytes);
  AppendBigEndian<uint32_t>(1, bytes);  // The index of the first one.
  return bytes;
}

template <typename T>
std::string ArrayOfBytes(absl::Span<const T> values) {
  std::string bytes = ArrayHeader(kBytea, values.size());
  for (const auto& value : values) {
    AppendBigEndian<uint32_t>(static_cast<uint32_t>(value.size()), bytes);
    bytes.append(value.data(), value.size());
  }
  return bytes;
}

}  // namespace

PostgresValues& PostgresValues::Add(uint32_t type, std::string value) {
  types_.push_back(type);
  values_.push_back(std::move(value));
  return *this;
}

PostgresValues& PostgresValues::Integer(int64_t value) {
  std::string bytes;
  AppendBigEndian<int64_t>(value, bytes);
  return Add(kInt8, std::move(bytes));
}

PostgresValues& PostgresValues::Bytes(absl::string_view bytes) { return Add(kBytea, std::string(bytes)); }

PostgresValues& PostgresValues::Text(absl::string_view text) { return Add(kText, std::string(text)); }

PostgresValues& PostgresValues::IntegerArray(absl::Span<const int64_t> values) {
  std::string bytes = ArrayHeader(kInt8, values.size());
  for (const int64_t value : values) {
    AppendBigEndian<uint32_t>(sizeof(value), bytes);
    AppendBigEndian<int64_t>(value, bytes);
  }
  return Add(kInt8Array, std::move(bytes));
}

PostgresValues& PostgresValues::BytesArray(absl::Span<const std::string> values) {
  return Add(kByteaArray, ArrayOfBytes(values));
}

PostgresValues& PostgresValues::BytesArray(absl::Span<const absl::string_view> values) {
  return Add(kByteaArray, ArrayOfBytes(values));
}

}  // namespace c3po
