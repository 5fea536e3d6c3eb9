// Packed levels against what PyPI's compressed-tensors reads out of them, bit for bit.

#include "server/weights/packed_tensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "server/weights/host_matrix.h"
#include "server/weights/stored_elements.h"

namespace c3po {
namespace {

using testing::HasSubstr;

using Tensors = std::map<std::string, TensorView, std::less<>>;

const std::vector<PackedFormat> kFormats = {{4, 32}, {8, 32}, {4, 16}, {8, 16}, {4, 128}};

class PackedTensors : public testing::Test {
 protected:
  void SetUp() override {
    auto file = SafetensorsFile::Open(std::string(C3PO_TESTDATA_DIR) + "/packed/packed.safetensors");
    ASSERT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    for (const std::string& name : file_->names()) {
      (absl::EndsWith(name, ".expected") ? expected_ : tensors_)[name] = *file_->Find(name);
    }
  }

  std::unique_ptr<SafetensorsFile> file_;
  Tensors tensors_, expected_;
};

TEST_F(PackedTensors, AreTheNumbersOfCompressedTensors) {
  ASSERT_TRUE(JoinPacked(kFormats, tensors_).ok());
  ASSERT_EQ(tensors_.size(), expected_.size());
  for (const PackedFormat& format : kFormats) {
    const std::string stem = "int" + std::to_string(format.bits) + "_" + std::to_string(format.group_columns);
    const TensorView& view = tensors_.at(stem + ".weight");
    const TensorView& whole = expected_.at(stem + ".expected");
    EXPECT_EQ(view.dtype, format.bits == 8 ? DType::kInt8 : DType::kInt4);
    EXPECT_EQ(view.shape, whole.shape);
    EXPECT_EQ(view.scale_columns, format.group_columns);
    EXPECT_EQ(view.elements(), whole.elements());
    const HostMatrix matrix = HostMatrix::Of(view), wanted = HostMatrix::Of(whole);
    EXPECT_EQ(ScaleProblem(matrix), "");
    std::vector<float> got(static_cast<size_t>(matrix.columns)), row = got;
    std::vector<uint16_t> halves(got.size()), rounded = halves;
    for (int64_t r = 0; r < matrix.rows; ++r) {
      RowToFloat32(matrix, r, got.data());
      RowToFloat32(wanted, r, row.data());
      ASSERT_EQ(got, row) << stem << " row " << r;
      RowToBfloat16(matrix, r, halves.data());
      RowToBfloat16(wanted, r, rounded.data());
      ASSERT_EQ(halves, rounded) << stem << " row " << r;
      RowToFloat32(matrix.Rows(r, 1), 0, got.data());
      ASSERT_EQ(got, row) << stem << " row " << r << ", cut out";
    }
  }
}

TEST_F(PackedTensors, HaveTheFirstColumnInTheLowestBits) {
  const uint32_t word = 0x76543210;
  for (int i = 0; i < 8; ++i) EXPECT_EQ(PackedLevel(DType::kInt4, reinterpret_cast<const std::byte*>(&word), i), i - 8);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(PackedLevel(DType::kInt8, reinterpret_cast<const std::byte*>(&word), i), 0x10 + 0x22 * i - 128);
  }
}

TEST_F(PackedTensors, OfAFormatThatIsNotNamedAreRefused) {
  for (size_t left_out = 0; left_out < kFormats.size(); ++left_out) {
    std::vector<PackedFormat> formats = kFormats;
    formats.erase(formats.begin() + static_cast<std::ptrdiff_t>(left_out));
    Tensors tensors = tensors_;
    const std::string message(JoinPacked(formats, tensors).message());
    EXPECT_THAT(message, HasSubstr("int" + std::to_string(kFormats[left_out].bits) + "_" +
                                   std::to_string(kFormats[left_out].group_columns) + ".weight_packed"));
  }
}

TEST_F(PackedTensors, AreNotReadAsPlainElements) {
  float value;
  EXPECT_TRUE(IsWeightType(DType::kInt4));
  EXPECT_THROW(ToFloat32(DType::kInt4, nullptr, 8, &value), std::invalid_argument);
}

}  // namespace
}  // namespace c3po
