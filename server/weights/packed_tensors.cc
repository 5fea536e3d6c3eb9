#include "server/weights/packed_tensors.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using Tensors = std::map<std::string, TensorView, std::less<>>;

constexpr char kWeight[] = ".weight", kPacked[] = ".weight_packed", kScale[] = ".weight_scale",
               kShape[] = ".weight_shape";

absl::Status Invalid(absl::string_view name, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("tensor ", Quoted(name), ": ", what));
}

absl::Status CheckPart(const Tensors& tensors, absl::string_view name, DType type, size_t rank) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) return Invalid(name, "is missing beside weight_packed");
  const TensorView& view = found->second;
  if (view.dtype == type && view.shape.size() == rank) return absl::OkStatus();
  return Invalid(name, absl::StrCat(DTypeName(view.dtype), ShapeString(view.shape), " must be ", DTypeName(type),
                                    " of ", rank, rank == 1 ? " dimension" : " dimensions"));
}

std::string FormatsText(absl::Span<const PackedFormat> formats) {
  return absl::StrJoin(formats, ", ", [](std::string* text, const PackedFormat& format) {
    absl::StrAppend(text, format.bits, " bits in groups of ", format.group_columns);
  });
}

// The view of X.weight.
absl::StatusOr<TensorView> Joined(const Tensors& tensors, absl::Span<const PackedFormat> formats,
                                  const std::string& stem) {
  if (tensors.count(stem + kWeight)) return Invalid(stem + kWeight, "is there beside weight_packed");
  C3PO_RETURN_IF_ERROR(CheckPart(tensors, stem + kPacked, DType::kI32, 2));
  C3PO_RETURN_IF_ERROR(CheckPart(tensors, stem + kScale, DType::kBF16, 2));
  C3PO_RETURN_IF_ERROR(CheckPart(tensors, stem + kShape, DType::kI64, 1));
  const TensorView &packed = tensors.find(stem + kPacked)->second, &scale = tensors.find(stem + kScale)->second,
                   &stored = tensors.find(stem + kShape)->second;
  if (stored.elements() != 2) return Invalid(stem + kShape, "must have two entries");
  int64_t shape[2];
  std::memcpy(shape, stored.bytes.data(), sizeof(shape));
  const int64_t rows = packed.shape[0], words = packed.shape[1], groups = scale.shape[1];
  for (const PackedFormat& format : formats) {
    const int64_t in_word = 32 / format.bits;
    // No product overflows: so many words and scales are there.
    const bool fits = rows > 0 && shape[0] == rows && scale.shape[0] == rows && shape[1] > 0 &&
                      shape[1] / in_word <= words && (shape[1] + in_word - 1) / in_word == words &&
                      shape[1] % format.group_columns == 0 && shape[1] / format.group_columns == groups;
    if (!fits) continue;
    TensorView view{format.bits == 8 ? DType::kInt8 : DType::kInt4, {shape[0], shape[1]}, packed.bytes};
    view.scales = scale.bytes;
    view.scale_columns = format.group_columns;
    return view;
  }
  return Invalid(stem + kPacked, absl::StrCat("shape ", ShapeString(packed.shape), " with scales ",
                                              ShapeString(scale.shape), " and weight_shape ", ShapeString(shape),
                                              " is not of quantization_config: ", FormatsText(formats)));
}

}  // namespace

bool IsPackedType(DType type) { return type == DType::kInt8 || type == DType::kInt4; }

absl::Status JoinPacked(absl::Span<const PackedFormat> formats, Tensors& tensors) {
  std::vector<std::string> stems;
  for (const auto& [name, view] : tensors) {
    if (absl::EndsWith(name, kPacked)) stems.emplace_back(absl::StripSuffix(name, kPacked));
  }
  for (const std::string& stem : stems) {
    C3PO_ASSIGN_OR_RETURN(TensorView view, Joined(tensors, formats, stem));
    for (const char* part : {kPacked, kScale, kShape}) tensors.erase(stem + part);
    tensors.emplace(stem + kWeight, std::move(view));
  }
  return absl::OkStatus();
}

int PackedLevel(DType type, const std::byte* row, int64_t i) {
  if (type == DType::kInt8) return std::to_integer<int>(row[i]) - 128;
  return (std::to_integer<int>(row[i / 2]) >> (i % 2 * 4) & 15) - 8;
}

}  // namespace c3po
