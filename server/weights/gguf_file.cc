#include "server/weights/gguf_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

constexpr char kMagic[] = "GGUF";
constexpr uint32_t kVersionMin = 2, kVersionMax = 3;
constexpr uint64_t kAlignment = 32;

// The numbers of ggml's types: those that are read, and the others' names, for messages.
constexpr struct {
  uint32_t number;
  const char* name;
  std::optional<DType> dtype;
} kTensorTypes[] = {
    {0, "F32", DType::kF32},      {1, "F16", DType::kF16},       {2, "Q4_0", DType::kQ4_0},
    {3, "Q4_1", DType::kQ4_1},    {6, "Q5_0", DType::kQ5_0},     {7, "Q5_1", DType::kQ5_1},
    {8, "Q8_0", DType::kQ8_0},    {9, "Q8_1", std::nullopt},     {10, "Q2_K", std::nullopt},
    {11, "Q3_K", std::nullopt},   {12, "Q4_K", DType::kQ4_K},    {13, "Q5_K", DType::kQ5_K},
    {14, "Q6_K", DType::kQ6_K},   {15, "Q8_K", std::nullopt},    {16, "IQ2_XXS", std::nullopt},
    {17, "IQ2_XS", std::nullopt}, {18, "IQ3_XXS", std::nullopt}, {19, "IQ1_S", std::nullopt},
    {20, "IQ4_NL", std::nullopt}, {21, "IQ3_S", std::nullopt},   {22, "IQ2_S", std::nullopt},
    {23, "IQ4_XS", std::nullopt}, {24, "I8", std::nullopt},      {25, "I16", std::nullopt},
    {26, "I32", std::nullopt},    {27, "I64", std::nullopt},     {28, "F64", std::nullopt},
    {29, "IQ1_M", std::nullopt},  {30, "BF16", DType::kBF16},    {34, "TQ1_0", std::nullopt},
    {35, "TQ2_0", std::nullopt},  {39, "MXFP4", std::nullopt},
};

// Bytes of a value that is neither a text nor an array; 0: no such type.
uint64_t BytesOfType(uint32_t type) {
  switch (static_cast<GgufType>(type)) {
    case GgufType::kUint8:
    case GgufType::kInt8:
    case GgufType::kBool:
      return 1;
    case GgufType::kUint16:
    case GgufType::kInt16:
      return 2;
    case GgufType::kUint32:
    case GgufType::kInt32:
    case GgufType::kFloat32:
      return 4;
    case GgufType::kUint64:
    case GgufType::kInt64:
    case GgufType::kFloat64:
      return 8;
    case GgufType::kString:
    case GgufType::kArray:
      break;
  }
  return 0;
}

template <typename Number>
Number NumberAt(const std::byte* at) {
  Number number;
  std::memcpy(&number, at, sizeof number);
  return number;
}

std::optional<int64_t> IntegerAt(GgufType type, const std::byte* at) {
  switch (type) {
    case GgufType::kUint8:
      return NumberAt<uint8_t>(at);
    case GgufType::kInt8:
      return NumberAt<int8_t>(at);
    case GgufType::kUint16:
      return NumberAt<uint16_t>(at);
    case GgufType::kInt16:
      return NumberAt<int16_t>(at);
    case GgufType::kUint32:
      return NumberAt<uint32_t>(at);
    case GgufType::kInt32:
      return NumberAt<int32_t>(at);
    case GgufType::kInt64:
      return NumberAt<int64_t>(at);
    case GgufType::kUint64: {
      const auto number = NumberAt<uint64_t>(at);
      if (number > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(number);
    }
    default:
      return std::nullopt;
  }
}

uint64_t RoundUp(uint64_t number, uint64_t to) { return (number + to - 1) / to * to; }

}  // namespace

std::optional<int64_t> GgufValue::Integer() const { return is_array ? std::nullopt : IntegerAt(type, bytes.data()); }

std::optional<float> GgufValue::Float() const {
  if (is_array) return std::nullopt;
  if (type == GgufType::kFloat32) return NumberAt<float>(bytes.data());
  if (type != GgufType::kFloat64) return std::nullopt;
  const auto wide = NumberAt<double>(bytes.data());
  const bool fits = wide >= -std::numeric_limits<float>::max() && wide <= std::numeric_limits<float>::max();
  return fits ? std::optional(static_cast<float>(wide)) : std::nullopt;
}

std::optional<bool> GgufValue::Bool() const {
  if (is_array || type != GgufType::kBool) return std::nullopt;
  return bytes[0] != std::byte{0};
}

std::optional<absl::string_view> GgufValue::Text() const {
  if (is_array || type != GgufType::kString) return std::nullopt;
  return absl::string_view(reinterpret_cast<const char*>(bytes.data()) + 8, bytes.size() - 8);
}

std::optional<std::vector<absl::string_view>> GgufValue::Texts() const {
  if (!is_array || type != GgufType::kString) return std::nullopt;
  std::vector<absl::string_view> texts;
  texts.reserve(count);
  for (size_t at = 0; at < bytes.size();) {
    const auto length = NumberAt<uint64_t>(bytes.data() + at);
    texts.emplace_back(reinterpret_cast<const char*>(bytes.data()) + at + 8, length);
    at += 8 + length;
  }
  return texts;
}

std::optional<std::vector<float>> GgufValue::Floats() const {
  if (!is_array || type != GgufType::kFloat32) return std::nullopt;
  std::vector<float> floats(count);
  if (count > 0) std::memcpy(floats.data(), bytes.data(), bytes.size());
  return floats;
}

std::optional<std::vector<int64_t>> GgufValue::Integers() const {
  if (!is_array || BytesOfType(static_cast<uint32_t>(type)) == 0) return std::nullopt;
  std::vector<int64_t> integers;
  integers.reserve(count);
  const size_t stride = BytesOfType(static_cast<uint32_t>(type));
  for (size_t i = 0; i < count; ++i) {
    const std::optional<int64_t> integer = IntegerAt(type, bytes.data() + i * stride);
    if (!integer) return std::nullopt;
    integers.push_back(*integer);
  }
  return integers;
}

// Reads a header from its first byte on; the first error sticks.
class GgufHeader {
 public:
  explicit GgufHeader(GgufFile* file) : file_(file), mapping_(file->mapping_.bytes()) {}

  absl::Status Read() {
    C3PO_RETURN_IF_ERROR(ReadCounts());
    for (uint64_t i = 0; i < entry_count_; ++i) C3PO_RETURN_IF_ERROR(ReadEntry());
    C3PO_RETURN_IF_ERROR(ReadAlignment());
    for (uint64_t i = 0; i < tensor_count_; ++i) C3PO_RETURN_IF_ERROR(ReadTensor());
    return PlaceTensors();
  }

 private:
  struct Place {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
    uint64_t offset, bytes;
  };

  template <typename... What>
  absl::Status Invalid(const What&... what) const {
    return absl::InvalidArgumentError(absl::StrCat(file_->path(), ": ", what...));
  }
  template <typename... What>
  absl::Status Truncated(const What&... what) const {
    return absl::DataLossError(absl::StrCat(file_->path(), ": truncated: ", what...));
  }

  absl::StatusOr<absl::Span<const std::byte>> Take(uint64_t bytes, absl::string_view what) {
    if (bytes > mapping_.size() - at_) {
      return Truncated(what, " at byte ", at_, " has ", bytes, " bytes, the file ", mapping_.size());
    }
    const absl::Span<const std::byte> taken = mapping_.subspan(at_, bytes);
    at_ += bytes;
    return taken;
  }
  template <typename Number>
  absl::StatusOr<Number> TakeNumber(absl::string_view what) {
    C3PO_ASSIGN_OR_RETURN(const auto bytes, Take(sizeof(Number), what));
    return NumberAt<Number>(bytes.data());
  }
  absl::StatusOr<std::string> TakeName(absl::string_view what) {
    C3PO_ASSIGN_OR_RETURN(const uint64_t length, TakeNumber<uint64_t>(what));
    if (length == 0 || length > kGgufNameBytesMax) {
      return Invalid(what, " before byte ", at_, " has ", length, " bytes, must have 1 to ", kGgufNameBytesMax);
    }
    C3PO_ASSIGN_OR_RETURN(const auto bytes, Take(length, what));
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

  absl::Status ReadCounts() {
    C3PO_ASSIGN_OR_RETURN(const auto magic, Take(4, "the header"));
    if (std::memcmp(magic.data(), kMagic, 4) != 0) return Invalid("not a GGUF file: it must begin with \"GGUF\"");
    C3PO_ASSIGN_OR_RETURN(const uint32_t version, TakeNumber<uint32_t>("the header"));
    if (version < kVersionMin || version > kVersionMax) {
      const bool big_endian = (version & 0xFFFF) == 0 && version != 0;
      return absl::UnimplementedError(absl::StrCat(
          file_->path(), ": GGUF ", big_endian ? "of big-endian numbers" : absl::StrCat("version ", version),
          " is not supported; supported are versions ", kVersionMin, " and ", kVersionMax, " of little-endian ones"));
    }
    C3PO_ASSIGN_OR_RETURN(tensor_count_, TakeNumber<uint64_t>("the header"));
    C3PO_ASSIGN_OR_RETURN(entry_count_, TakeNumber<uint64_t>("the header"));
    if (tensor_count_ > kSafetensorsTensorsMax) {
      return Invalid(tensor_count_, " tensors, at most ", kSafetensorsTensorsMax, " are taken");
    }
    if (entry_count_ > kGgufEntriesMax) {
      return Invalid(entry_count_, " metadata entries, at most ", kGgufEntriesMax, " are taken");
    }
    return absl::OkStatus();
  }

  absl::Status ReadEntry() {
    C3PO_ASSIGN_OR_RETURN(const std::string key, TakeName("a metadata key"));
    const std::string what = absl::StrCat("key ", Quoted(key));
    C3PO_ASSIGN_OR_RETURN(uint32_t type, TakeNumber<uint32_t>(what));
    GgufValue value;
    if (type == static_cast<uint32_t>(GgufType::kArray)) {
      value.is_array = true;
      C3PO_ASSIGN_OR_RETURN(type, TakeNumber<uint32_t>(what));
      C3PO_ASSIGN_OR_RETURN(value.count, TakeNumber<uint64_t>(what));
      if (type == static_cast<uint32_t>(GgufType::kArray)) return Invalid(what, ": an array of arrays is not taken");
    }
    value.type = static_cast<GgufType>(type);
    const size_t begin = at_;
    if (value.type == GgufType::kString) {
      for (uint64_t i = 0; i < value.count; ++i) {
        C3PO_ASSIGN_OR_RETURN(const uint64_t length, TakeNumber<uint64_t>(what));
        C3PO_RETURN_IF_ERROR(Take(length, what).status());
      }
    } else {
      const uint64_t each = BytesOfType(type);
      if (each == 0) return Invalid(what, ": type ", type, " is none of metadata's");
      uint64_t bytes;
      if (__builtin_mul_overflow(each, value.count, &bytes)) {
        return Truncated(what, " has ", value.count, " elements, the file ", mapping_.size(), " bytes");
      }
      C3PO_RETURN_IF_ERROR(Take(bytes, what).status());
      if (value.type == GgufType::kBool) {
        C3PO_RETURN_IF_ERROR(CheckBools(what, mapping_.subspan(begin, bytes)));
      }
    }
    value.bytes = mapping_.subspan(begin, at_ - begin);
    if (!file_->metadata_.emplace(key, value).second) return Invalid(what, " appears twice");
    return absl::OkStatus();
  }

  absl::Status CheckBools(absl::string_view what, absl::Span<const std::byte> bytes) const {
    const auto is_bool = [](std::byte byte) { return byte <= std::byte{1}; };
    if (std::all_of(bytes.begin(), bytes.end(), is_bool)) return absl::OkStatus();
    return Invalid(what, ": a boolean must be 0 or 1");
  }

  absl::Status ReadAlignment() {
    const GgufValue* const value = file_->Find("general.alignment");
    if (value == nullptr) return absl::OkStatus();
    const std::optional<int64_t> alignment = value->Integer();
    const uint64_t number = alignment && *alignment > 0 ? static_cast<uint64_t>(*alignment) : 0;
    if (number == 0 || number > kGgufAlignmentMax || (number & (number - 1)) != 0) {
      return Invalid("key \"general.alignment\" must be a power of two, at most ", kGgufAlignmentMax);
    }
    alignment_ = number;
    return absl::OkStatus();
  }

  absl::Status ReadTensor() {
    Place place;
    C3PO_ASSIGN_OR_RETURN(place.name, TakeName("a tensor's name"));
    const std::string what = absl::StrCat("tensor ", Quoted(place.name));
    C3PO_ASSIGN_OR_RETURN(const uint32_t rank, TakeNumber<uint32_t>(what));
    if (rank > kGgufRankMax) return Invalid(what, ": has ", rank, " dimensions, at most ", kGgufRankMax, " are taken");
    int64_t elements = 1;
    for (uint32_t i = 0; i < rank; ++i) {
      C3PO_ASSIGN_OR_RETURN(const uint64_t dimension, TakeNumber<uint64_t>(what));
      if (dimension == 0) return Invalid(what, ": has a dimension of 0");
      if (dimension > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) ||
          __builtin_mul_overflow(elements, static_cast<int64_t>(dimension), &elements)) {
        return Invalid(what, ": shape overflows");
      }
      place.shape.insert(place.shape.begin(), static_cast<int64_t>(dimension));
    }
    C3PO_ASSIGN_OR_RETURN(const uint32_t type, TakeNumber<uint32_t>(what));
    C3PO_ASSIGN_OR_RETURN(place.dtype, TypeOf(what, type));
    const int64_t block = DTypeBlock(place.dtype), inner = place.shape.empty() ? 1 : place.shape.back();
    if (inner % block != 0) {
      return Invalid(what, ": rows of ", inner, " elements are no whole blocks of ", DTypeName(place.dtype));
    }
    int64_t bytes;
    if (__builtin_mul_overflow(elements / block, DTypeBytes(place.dtype), &bytes)) {
      return Invalid(what, ": shape overflows");
    }
    place.bytes = static_cast<uint64_t>(bytes);
    C3PO_ASSIGN_OR_RETURN(place.offset, TakeNumber<uint64_t>(what));
    if (place.offset % alignment_ != 0) {
      return Invalid(what, ": offset ", place.offset, " is no multiple of the alignment ", alignment_);
    }
    places_.push_back(std::move(place));
    return absl::OkStatus();
  }

  absl::StatusOr<DType> TypeOf(absl::string_view what, uint32_t type) const {
    const auto* const known = std::find_if(std::begin(kTensorTypes), std::end(kTensorTypes),
                                           [type](const auto& row) { return row.number == type; });
    if (known != std::end(kTensorTypes) && known->dtype) return *known->dtype;
    return absl::UnimplementedError(
        absl::StrCat(file_->path(), ": ", what, ": type ",
                     known == std::end(kTensorTypes) ? absl::StrCat("number ", type) : std::string(known->name),
                     " is not supported"));
  }

  absl::Status PlaceTensors() {
    std::sort(places_.begin(), places_.end(),
              [](const Place& a, const Place& b) { return std::tie(a.offset, a.bytes) < std::tie(b.offset, b.bytes); });
    // Without tensors a file may end before the padding.
    const uint64_t begin = std::min<uint64_t>(RoundUp(at_, alignment_), places_.empty() ? mapping_.size() : UINT64_MAX);
    if (begin > mapping_.size()) {
      return Truncated("the data begins at byte ", begin, ", the file has ", mapping_.size());
    }
    const absl::Span<const std::byte> data = mapping_.subspan(begin);
    uint64_t covered = 0;
    for (Place& place : places_) {
      const std::string what = absl::StrCat("tensor ", Quoted(place.name));
      if (place.offset < covered) return Invalid(what, ": overlaps another one at byte ", place.offset, " of the data");
      if (place.offset - covered >= alignment_) {
        return Invalid(what, ": bytes ", covered, " to ", place.offset, " of the data before it belong to no tensor");
      }
      if (place.offset > data.size() || place.bytes > data.size() - place.offset) {
        return Truncated(what, " has ", place.bytes, " bytes from byte ", place.offset, " of the data on, which has ",
                         data.size());
      }
      covered = place.offset + place.bytes;
      const TensorView view{place.dtype, std::move(place.shape), data.subspan(place.offset, place.bytes)};
      if (!file_->tensors_.emplace(place.name, view).second) return Invalid(what, " appears twice");
    }
    if (data.size() - covered >= alignment_) {
      return Invalid("data after the last tensor: ", data.size() - covered, " bytes");
    }
    return absl::OkStatus();
  }

  GgufFile* const file_;
  const absl::Span<const std::byte> mapping_;
  size_t at_ = 0;  // At most mapping_.size().
  uint64_t tensor_count_ = 0, entry_count_ = 0;
  uint64_t alignment_ = kAlignment;
  std::vector<Place> places_;
};

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(MappedFile mapping, MappedFile::Open(path));
  std::unique_ptr<GgufFile> file(new GgufFile(path, std::move(mapping)));
  C3PO_RETURN_IF_ERROR(GgufHeader(file.get()).Read());
  return file;
}

const GgufValue* GgufFile::Find(absl::string_view key) const {
  const auto found = metadata_.find(key);
  return found == metadata_.end() ? nullptr : &found->second;
}

}  // namespace c3po
