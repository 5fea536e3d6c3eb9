#include "server/weights/safetensors_file.h"

#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kHeader[] =
    R"({"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
    R"("b":{"dtype":"BF16","shape":[],"data_offsets":[16,18]},"c":{"dtype":"I64","shape":[0,7],"data_offsets":[18,18]}})";

std::string Data() {
  const float values[4] = {1, -2, 0.5, 4};
  std::string data(sizeof values, '\0');
  std::memcpy(data.data(), values, sizeof values);
  return data + std::string("\x80\x3f", 2);
}

// The message of the error that a file with this header and data gives; "" when it opens.
std::string OpenError(absl::string_view header, absl::string_view data) {
  TestFolder folder;
  const auto file = SafetensorsFile::Open(folder.Write("t.safetensors", SafetensorsText(header, data)));
  if (!file.ok()) {
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("t.safetensors"));
  }
  return std::string(file.status().message());
}

// One tensor "x" with these fields, over `bytes` bytes of data.
std::string ErrorOfTensor(absl::string_view fields, size_t bytes) {
  return OpenError(absl::StrCat(R"({"x":{)", fields, "}}"), std::string(bytes, 'x'));
}

TEST(SafetensorsFile, GivesNamesDtypesShapesAndBytes) {
  TestFolder folder;
  const auto file = SafetensorsFile::Open(folder.Write("t.safetensors", SafetensorsText(kHeader, Data())));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_THAT((*file)->names(), ElementsAre("a.weight", "b", "c"));
  const TensorView* a = (*file)->Find("a.weight");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->dtype, DType::kF32);
  EXPECT_THAT(a->shape, ElementsAre(2, 2));
  EXPECT_EQ(a->elements(), 4);
  float values[4];
  ASSERT_EQ(a->bytes.size(), sizeof values);
  std::memcpy(values, a->bytes.data(), sizeof values);
  EXPECT_THAT(values, ElementsAre(1, -2, 0.5, 4));
  EXPECT_EQ((*file)->Find("b")->elements(), 1);
  EXPECT_EQ((*file)->Find("c")->elements(), 0);
  EXPECT_EQ((*file)->Find("d"), nullptr);
}

TEST(SafetensorsFile, KnowsEveryDtypeOfTheFormatThatFillsWholeBytes) {
  const std::pair<const char*, int> dtypes[] = {{"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E5M2", 1}, {"F8_E4M3", 1},
                                                {"I16", 2},  {"U16", 2}, {"F16", 2}, {"BF16", 2},    {"I32", 4},
                                                {"U32", 4},  {"F32", 4}, {"I64", 8}, {"U64", 8},     {"F64", 8}};
  for (const auto& [name, bytes] : dtypes) {
    TestFolder folder;
    const std::string header =
        absl::StrCat(R"({"x":{"dtype":")", name, R"(","shape":[3],"data_offsets":[0,)", 3 * bytes, "]}}");
    const auto file =
        SafetensorsFile::Open(folder.Write("t.safetensors", SafetensorsText(header, std::string(3 * bytes, 'x'))));
    ASSERT_TRUE(file.ok()) << file.status();
    EXPECT_EQ(DTypeName((*file)->Find("x")->dtype), name);
    EXPECT_EQ(DTypeBytes((*file)->Find("x")->dtype), bytes);
  }
}

TEST(SafetensorsFile, OpensAFileWithoutTensorsAndAHeaderPaddedWithSpaces) {
  EXPECT_EQ(OpenError("{}", ""), "");
  EXPECT_EQ(OpenError("{}      ", ""), "");
}

TEST(SafetensorsFile, RefusesEveryTruncationOfAFile) {
  TestFolder folder;
  const std::string whole = SafetensorsText(kHeader, Data());
  for (size_t size = 0; size < whole.size(); ++size) {
    const auto file = SafetensorsFile::Open(folder.Write("cut.safetensors", whole.substr(0, size)));
    ASSERT_FALSE(file.ok()) << size;
    EXPECT_EQ(file.status().code(), absl::StatusCode::kDataLoss) << size << " " << file.status();
    EXPECT_THAT(std::string(file.status().message()), AllOf(HasSubstr("cut.safetensors"), HasSubstr("truncated")));
  }
}

TEST(SafetensorsFile, RefusesEveryTruncationOfTheHeaderAlone) {
  const std::string header = kHeader;
  for (size_t size = 0; size < header.size(); ++size) EXPECT_NE(OpenError(header.substr(0, size), Data()), "") << size;
}

TEST(SafetensorsFile, RefusesAHeaderLongerThanTheLimitBeforeReadingIt) {
  TestFolder folder;
  for (const absl::string_view length : {absl::string_view("\xff\xff\xff\xff\xff\xff\xff\xff", 8),
                                         absl::string_view("\xff\xff\xff\xff\xff\xff\xff\x7f", 8),
                                         absl::string_view("\x01\xe1\xf5\x05\0\0\0\0", 8)}) {  // 100,000,001
    const auto file = SafetensorsFile::Open(folder.Write("t.safetensors", absl::StrCat(length, kHeader)));
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("at most 100000000"));
  }
}

TEST(SafetensorsFile, RefusesOverlapsAndGaps) {
  const auto two = [](int begin, int end) {
    return OpenError(absl::StrCat(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[)",
                                  end - begin, R"(],"data_offsets":[)", begin, ",", end, "]}}"),
                     "12345678");
  };
  EXPECT_EQ(two(4, 8), "");
  EXPECT_THAT(two(3, 8), HasSubstr("overlap at byte 3"));
  EXPECT_THAT(two(0, 8), HasSubstr("overlap at byte 0"));
  EXPECT_THAT(two(5, 8), HasSubstr("bytes 4 to 5"));
  EXPECT_THAT(two(4, 7), HasSubstr("data after the last tensor: 1 bytes"));
  EXPECT_THAT(two(4, 9), AllOf(HasSubstr("tensor \"b\""), HasSubstr("ends at byte 9")));
}

TEST(SafetensorsFile, RefusesShapesThatOverflowOrDisagreeWithTheOffsets) {
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])", 0),
              HasSubstr("overflows"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0])", 0),
              HasSubstr("overflows"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,0])", 0),
              HasSubstr("overflows"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","shape":[99999999999999999999],"data_offsets":[0,0])", 0),
              HasSubstr("tensor \"x\""));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","shape":[-1],"data_offsets":[0,0])", 0), HasSubstr("negative"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"F32","shape":[3],"data_offsets":[0,4])", 4), HasSubstr("F32[3] has 12"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","shape":[4],"data_offsets":[4,0])", 4), HasSubstr("run backwards"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,1])", 1),
              HasSubstr("more than 16 dimensions"));
}

TEST(SafetensorsFile, RefusesMalformedHeadersAndNamesTheTensor) {
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"F4","shape":[2],"data_offsets":[0,1])", 1),
              AllOf(HasSubstr("tensor \"x\""), HasSubstr("dtype \"F4\" is not supported")));
  EXPECT_THAT(ErrorOfTensor(R"("shape":[1],"data_offsets":[0,1])", 1), HasSubstr("dtype is missing"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","data_offsets":[0,1])", 1), HasSubstr("shape is missing"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","shape":[1])", 1), HasSubstr("data_offsets is missing"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","shape":[1],"data_offsets":[0,1,2])", 1), HasSubstr("[begin, end]"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","shape":[1],"data_offsets":[0])", 1), HasSubstr("[begin, end]"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","shape":[[1]],"data_offsets":[0,1])", 1), HasSubstr("an array"));
  EXPECT_THAT(ErrorOfTensor(R"("dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1])", 1),
              HasSubstr("repeated field \"dtype\""));
  EXPECT_THAT(OpenError(R"({"x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                        R"("x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                        ""),
              AllOf(HasSubstr("tensor \"x\""), HasSubstr("twice")));
  EXPECT_THAT(OpenError(R"({"x":7})", ""), HasSubstr("tensor \"x\": a number"));
  EXPECT_THAT(OpenError(R"({"__metadata__":{"a":[1]}})", ""), HasSubstr("an array"));
  EXPECT_THAT(OpenError("[]", ""), HasSubstr("must begin with {"));
  EXPECT_THAT(OpenError("{\"\xff\":1}", ""), HasSubstr("not JSON"));
  EXPECT_THAT(OpenError("{} {}", ""), HasSubstr("not JSON"));
}

TEST(SafetensorsFile, EscapesNamesInMessages) {
  EXPECT_THAT(OpenError(R"({"a\n\u0007\"b\u00e9":7})", ""), HasSubstr(R"(tensor "a\n\x07\"b\xc3\xa9": a number)"));
}

TEST(SafetensorsFile, RefusesMoreTensorsThanTheLimit) {
  std::string header = "{";
  for (size_t i = 0; i <= kSafetensorsTensorsMax; ++i) {
    absl::StrAppend(&header, i == 0 ? "" : ",", "\"", i, R"(":{"dtype":"U8","shape":[0],"data_offsets":[0,0]})");
  }
  EXPECT_THAT(OpenError(header + "}", ""), HasSubstr("at most 262144 tensors"));
}

TEST(SafetensorsFile, RefusesDeepNestingWithoutRecursion) {
  EXPECT_THAT(OpenError(absl::StrCat(R"({"x":)", std::string(1 << 20, '[')), ""), HasSubstr("an array"));
}

TEST(SafetensorsFile, NamesAMissingFileAndAFolder) {
  TestFolder folder;
  const auto missing = SafetensorsFile::Open(folder.path() + "/none.safetensors");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("none.safetensors"));
  EXPECT_EQ(SafetensorsFile::Open(folder.path()).status().code(), absl::StatusCode::kInvalidArgument);
}

// Whatever bytes change, the file either is refused with its name or gives views that lie inside it.
TEST(SafetensorsFile, SurvivesRandomMutations) {
  TestFolder folder;
  const std::string whole = SafetensorsText(kHeader, Data());
  std::mt19937 random(20250404);
  int opened = 0;
  uint64_t sum = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string mutated = whole;
    const int changes = 1 + static_cast<int>(random() % 4);
    for (int i = 0; i < changes; ++i) mutated[random() % mutated.size()] = static_cast<char>(random());
    const std::string path = folder.Write("mutated.safetensors", mutated);
    const auto file = SafetensorsFile::Open(path);
    if (!file.ok()) {
      ASSERT_THAT(std::string(file.status().message()), HasSubstr("mutated.safetensors")) << round;
      continue;
    }
    ++opened;
    for (const std::string& name : (*file)->names()) {
      const TensorView* view = (*file)->Find(name);
      uint64_t elements = 1;
      for (int64_t dimension : view->shape) elements *= static_cast<uint64_t>(dimension);
      ASSERT_EQ(elements * DTypeBytes(view->dtype), view->bytes.size()) << round;
      for (std::byte byte : view->bytes) sum += std::to_integer<uint64_t>(byte);
    }
  }
  EXPECT_GT(opened, 0);     // Changes within the data or a name.
  EXPECT_LT(opened, 2000);  // Most of the file is header.
  EXPECT_GT(sum, 0u);
}

}  // namespace
}  // namespace c3po
