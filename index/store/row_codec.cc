#include "index/store/row_codec.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace c3po {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are stored as the machine holds them");

template <typename T>
absl::StatusOr<T> DecodeJson(absl::string_view json) {
  try {
    return nlohmann::json::parse(json.begin(), json.end()).template get<T>();
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(error.what());
  }
}

// Texts are checked to be valid UTF-8 before they come here; `replace` keeps dump() from throwing all the same.
std::string Dump(const nlohmann::json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
}

}  // namespace

std::string EncodeFloats(absl::Span<const float> values) {
  std::string bytes(values.size() * sizeof(float), '\0');
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

absl::StatusOr<std::vector<float>> DecodeFloats(absl::string_view bytes) {
  if (bytes.size() % sizeof(float) != 0) {
    return absl::DataLossError(absl::StrCat(bytes.size(), " bytes are no whole number of floats"));
  }
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  for (float value : values) {
    if (!std::isfinite(value)) return absl::DataLossError("holds a number that is not finite");
  }
  return values;
}

void RowChecksum::Add(absl::string_view bytes) {
  const auto size = static_cast<uint64_t>(bytes.size());
  hash_.Update(absl::string_view(reinterpret_cast<const char*>(&size), sizeof(size)));
  hash_.Update(bytes);
}

void RowChecksum::Add(int64_t value) { Add(absl::string_view(reinterpret_cast<const char*>(&value), sizeof(value))); }

std::string RowChecksum::Digest() { return hash_.Digest(); }

std::string EncodeTexts(const std::vector<std::string>& texts) { return Dump(nlohmann::json(texts)); }

absl::StatusOr<std::vector<std::string>> DecodeTexts(absl::string_view json) {
  return DecodeJson<std::vector<std::string>>(json);
}

std::string EncodeTextMap(const std::map<std::string, std::string>& texts) { return Dump(nlohmann::json(texts)); }

absl::StatusOr<std::map<std::string, std::string>> DecodeTextMap(absl::string_view json) {
  return DecodeJson<std::map<std::string, std::string>>(json);
}

}  // namespace c3po
