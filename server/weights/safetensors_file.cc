#include "server/weights/safetensors_file.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

struct DTypeRow {
  DType dtype;
  absl::string_view name;
  int64_t bytes;
  int64_t block = 1;
};

constexpr DTypeRow kDTypes[] = {
    {DType::kBool, "BOOL", 1},
    {DType::kU8, "U8", 1},
    {DType::kI8, "I8", 1},
    {DType::kF8E5M2, "F8_E5M2", 1},
    {DType::kF8E4M3, "F8_E4M3", 1},
    {DType::kI16, "I16", 2},
    {DType::kU16, "U16", 2},
    {DType::kF16, "F16", 2},
    {DType::kBF16, "BF16", 2},
    {DType::kI32, "I32", 4},
    {DType::kU32, "U32", 4},
    {DType::kF32, "F32", 4},
    {DType::kI64, "I64", 8},
    {DType::kU64, "U64", 8},
    {DType::kF64, "F64", 8},
    {DType::kQ4_0, "Q4_0", 18, 32},
    {DType::kQ4_1, "Q4_1", 20, 32},
    {DType::kQ5_0, "Q5_0", 22, 32},
    {DType::kQ5_1, "Q5_1", 24, 32},
    {DType::kQ8_0, "Q8_0", 34, 32},
    {DType::kQ4_K, "Q4_K", 144, 256},
    {DType::kQ5_K, "Q5_K", 176, 256},
    {DType::kQ6_K, "Q6_K", 210, 256},
    {DType::kInt8, "INT8", 4, 4},
    {DType::kInt4, "INT4", 4, 8},
};

const DTypeRow& RowOf(DType dtype) { return kDTypes[static_cast<int>(dtype)]; }

// One entry of the header, as read; checked against the file afterwards.
struct HeaderEntry {
  std::optional<std::string> dtype;
  std::optional<std::vector<int64_t>> shape;
  std::optional<std::vector<uint64_t>> offsets;
};

// Reads the header as a stream of JSON events and stops at the first that does not belong there. A document tree would
// let a hostile header of 100 MB take gigabytes, and would drop the first of two tensors of one name without a word.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  using Entries = std::map<std::string, HeaderEntry>;

  bool key(string_t& text) override {
    switch (state_) {
      case State::kTop:
        name_ = text;
        if (name_ == "__metadata__") {
          if (std::exchange(metadata_seen_, true)) return Fail("__metadata__ appears twice");
          state_ = State::kMetadataStart;
          return true;
        }
        if (entries_.size() == kSafetensorsTensorsMax) {
          return Fail(absl::StrCat("one too many: at most ", kSafetensorsTensorsMax, " tensors are taken"));
        }
        entry_ = &entries_[name_];
        if (entry_->dtype || entry_->shape || entry_->offsets) return Fail("the name appears twice");
        state_ = State::kTensorStart;
        return true;
      case State::kTensor:
        if (text == "dtype" && !entry_->dtype) {
          state_ = State::kDType;
        } else if (text == "shape" && !entry_->shape) {
          state_ = State::kShapeStart;
        } else if (text == "data_offsets" && !entry_->offsets) {
          state_ = State::kOffsetsStart;
        } else {
          return Fail(absl::StrCat("unknown or repeated field ", Quoted(text)));
        }
        return true;
      case State::kMetadata:
        return true;
      default:
        return Unexpected("a key");
    }
  }
  bool start_object(std::size_t) override {
    switch (state_) {
      case State::kStart:
        state_ = State::kTop;
        return true;
      case State::kTensorStart:
        state_ = State::kTensor;
        return true;
      case State::kMetadataStart:
        state_ = State::kMetadata;
        return true;
      default:
        return Unexpected("an object");
    }
  }
  bool end_object() override {
    if (state_ == State::kTensor) {
      if (!entry_->dtype) return Fail("dtype is missing");
      if (!entry_->shape) return Fail("shape is missing");
      if (!entry_->offsets) return Fail("data_offsets is missing");
    }
    state_ = state_ == State::kTop ? State::kDone : State::kTop;
    return true;
  }
  bool start_array(std::size_t) override {
    if (state_ == State::kShapeStart) {
      entry_->shape.emplace();
      state_ = State::kShape;
      return true;
    }
    if (state_ == State::kOffsetsStart) {
      entry_->offsets.emplace();
      state_ = State::kOffsets;
      return true;
    }
    return Unexpected("an array");
  }
  bool end_array() override {
    if (state_ == State::kOffsets && entry_->offsets->size() != 2) return Fail("data_offsets must be [begin, end]");
    state_ = State::kTensor;
    return true;
  }
  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::kShape) {
      if (entry_->shape->size() == kSafetensorsRankMax) {
        return Fail(absl::StrCat("shape has more than ", kSafetensorsRankMax, " dimensions"));
      }
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Fail("shape overflows");
      entry_->shape->push_back(static_cast<int64_t>(value));
      return true;
    }
    if (state_ == State::kOffsets) {
      if (entry_->offsets->size() == 2) return Fail("data_offsets must be [begin, end]");
      entry_->offsets->push_back(value);
      return true;
    }
    return Unexpected("a number");
  }
  bool string(string_t& text) override {
    if (state_ == State::kMetadata) return true;
    if (state_ != State::kDType) return Unexpected("a string");
    entry_->dtype = text;
    state_ = State::kTensor;
    return true;
  }
  bool number_integer(number_integer_t) override { return Unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Unexpected("a fraction"); }
  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a boolean"); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }
  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception&) override {
    if (error_.empty()) error_ = absl::StrCat("the header is not JSON at byte ", position);
    return false;
  }

  const std::string& error() const { return error_; }
  Entries TakeEntries() { return std::move(entries_); }

 private:
  enum class State {
    kStart,
    kTop,
    kMetadataStart,
    kMetadata,
    kTensorStart,
    kTensor,
    kDType,
    kShapeStart,
    kShape,
    kOffsetsStart,
    kOffsets,
    kDone,
  };

  bool Fail(absl::string_view problem) {
    error_ = absl::StrCat("tensor ", Quoted(name_), ": ", problem);
    return false;
  }
  bool Unexpected(absl::string_view what) {
    if (state_ != State::kStart && !name_.empty()) return Fail(absl::StrCat(what, " where it does not belong"));
    error_ = absl::StrCat("the header has ", what, " where it does not belong");
    return false;
  }

  State state_ = State::kStart;
  bool metadata_seen_ = false;
  std::string name_;
  HeaderEntry* entry_ = nullptr;
  Entries entries_;
  std::string error_;
};

// Bytes of a tensor of this shape, or nullopt beyond 2^63.
std::optional<uint64_t> ByteSize(absl::Span<const int64_t> shape, DType dtype) {
  int64_t size = DTypeBytes(dtype);
  for (int64_t dimension : shape) {
    if (__builtin_mul_overflow(size, dimension, &size)) return std::nullopt;
  }
  return static_cast<uint64_t>(size);
}

// Over all pages that hold a byte of the view.
void Advise(const TensorView& view, int advice) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (const absl::Span<const std::byte> bytes : {view.bytes, view.scales}) {
    if (bytes.empty()) continue;
    const auto begin = reinterpret_cast<uintptr_t>(bytes.data()), end = begin + bytes.size();
    const uintptr_t first = begin / page * page;
    madvise(reinterpret_cast<void*>(first), end - first, advice);
  }
}

}  // namespace

void ReadAhead(const TensorView& view) { Advise(view, MADV_WILLNEED); }
void DropPages(const TensorView& view) { Advise(view, MADV_DONTNEED); }

absl::string_view DTypeName(DType dtype) { return RowOf(dtype).name; }
int64_t DTypeBlock(DType dtype) { return RowOf(dtype).block; }
int64_t DTypeBytes(DType dtype) { return RowOf(dtype).bytes; }
std::string Quoted(absl::string_view text) {
  constexpr size_t kShown = 200;
  return absl::StrCat("\"", absl::CHexEscape(text.substr(0, kShown)), text.size() > kShown ? "..." : "", "\"");
}
std::string ShapeString(absl::Span<const int64_t> shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

absl::StatusOr<std::unique_ptr<SafetensorsFile>> SafetensorsFile::Open(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(MappedFile mapping, MappedFile::Open(path));
  if (mapping.bytes().size() < 8) {
    return absl::DataLossError(
        absl::StrCat(path, ": truncated: ", mapping.bytes().size(), " bytes, fewer than a header"));
  }
  std::unique_ptr<SafetensorsFile> file(new SafetensorsFile(path, std::move(mapping)));
  C3PO_RETURN_IF_ERROR(file->ReadHeader());
  return file;
}

absl::Status SafetensorsFile::ReadHeader() {
  const auto invalid = [this](absl::string_view name, const auto&... problem) {
    return absl::InvalidArgumentError(name.empty() ? absl::StrCat(path_, ": ", problem...)
                                                   : absl::StrCat(path_, ": tensor ", Quoted(name), ": ", problem...));
  };
  const absl::Span<const std::byte> mapping = mapping_.bytes();
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | std::to_integer<uint64_t>(mapping[i]);
  if (header_bytes > kSafetensorsHeaderBytesMax) {
    return invalid("", "header of ", header_bytes, " bytes, at most ", kSafetensorsHeaderBytesMax, " are taken");
  }
  if (header_bytes > mapping.size() - 8) {
    return absl::DataLossError(absl::StrCat(path_, ": truncated: the header has ", header_bytes, " bytes, the file ",
                                            mapping.size() - 8, " after its length"));
  }
  const char* header = reinterpret_cast<const char*>(mapping.data()) + 8;
  if (header_bytes == 0 || *header != '{') return invalid("", "not a safetensors file: the header must begin with {");
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(header, header + header_bytes, &reader)) return invalid("", reader.error());

  const absl::Span<const std::byte> data = mapping.subspan(8 + header_bytes);
  std::vector<std::pair<uint64_t, uint64_t>> ranges;
  for (auto& [name, entry] : reader.TakeEntries()) {
    const auto* row =
        std::find_if(std::begin(kDTypes), std::end(kDTypes),
                     [&dtype = *entry.dtype](const DTypeRow& row) { return row.block == 1 && row.name == dtype; });
    if (row == std::end(kDTypes)) return invalid(name, "dtype ", Quoted(*entry.dtype), " is not supported");
    const uint64_t begin = (*entry.offsets)[0], end = (*entry.offsets)[1];
    if (begin > end) return invalid(name, "data_offsets [", begin, ", ", end, "] run backwards");
    const std::optional<uint64_t> size = ByteSize(*entry.shape, row->dtype);
    if (!size) return invalid(name, "shape ", ShapeString(*entry.shape), " overflows");
    if (*size != end - begin) {
      return invalid(name, "data_offsets span ", end - begin, " bytes; ", row->name, ShapeString(*entry.shape), " has ",
                     *size);
    }
    if (end > data.size()) {
      return absl::DataLossError(absl::StrCat(path_, ": truncated: tensor ", Quoted(name), " ends at byte ", end,
                                              " of the data, which has ", data.size()));
    }
    ranges.emplace_back(begin, end);
    tensors_.emplace(name, TensorView{row->dtype, *std::move(entry.shape), data.subspan(begin, end - begin)});
  }
  std::sort(ranges.begin(), ranges.end());
  uint64_t covered = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin < covered) return invalid("", "two tensors overlap at byte ", begin, " of the data");
    if (begin > covered) return invalid("", "bytes ", covered, " to ", begin, " of the data belong to no tensor");
    covered = end;
  }
  if (covered != data.size()) return invalid("", "data after the last tensor: ", data.size() - covered, " bytes");
  return absl::OkStatus();
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  names.reserve(tensors_.size());
  for (const auto& [name, view] : tensors_) names.push_back(name);
  return names;
}

const TensorView* SafetensorsFile::Find(absl::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace c3po
