#include "server/weights/gguf_file.h"

#include <fstream>
#include <random>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/weights/gguf_blocks.h"
#include "server/weights/gguf_parts.h"
#include "server/weights/stored_elements.h"
#include "tests/server/weights/gguf_text.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kBlocks[] = C3PO_TESTDATA_DIR "/gguf/blocks.gguf";
constexpr uint32_t kF32 = 0, kQ8_0 = 8;

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Two tensors: "a" of 2 x 2 floats, padded to 32 bytes, and "b", a block of Q8_0.
GgufContent TwoTensors() {
  GgufContent content;
  content.AddText("general.architecture", "none");
  content.tensors = {{"a", {2, 2}, kF32, 0}, {"b", {32}, kQ8_0, 32}};
  content.data = std::string(66, 'x');
  return content;
}

absl::Status StatusOf(const std::string& bytes) {
  TestFolder folder;
  const auto file = GgufFile::Open(folder.Write("t.gguf", bytes));
  if (!file.ok()) {
    EXPECT_THAT(std::string(file.status().message()), HasSubstr("t.gguf"));
  }
  return file.status();
}
std::string ErrorOf(const GgufContent& content) { return std::string(StatusOf(content.Bytes()).message()); }

TEST(GgufFile, ReadsWhatPyPiGgufWrote) {
  const auto opened = GgufFile::Open(kBlocks);
  ASSERT_TRUE(opened.ok()) << opened.status();
  const GgufFile& file = **opened;
  EXPECT_EQ(file.Find("t.uint8")->Integer(), 200);
  EXPECT_EQ(file.Find("t.int8")->Integer(), -100);
  EXPECT_EQ(file.Find("t.uint16")->Integer(), 60000);
  EXPECT_EQ(file.Find("t.int16")->Integer(), -30000);
  EXPECT_EQ(file.Find("t.uint32")->Integer(), 4000000000);
  EXPECT_EQ(file.Find("t.int32")->Integer(), -2000000000);
  EXPECT_EQ(file.Find("t.uint64")->Integer(), int64_t{1} << 62);
  EXPECT_EQ(file.Find("t.int64")->Integer(), -(int64_t{1} << 62));
  EXPECT_EQ(file.Find("t.float32")->Float(), 1e-5f);
  EXPECT_EQ(file.Find("t.float64")->Float(), 0.5f);
  EXPECT_EQ(file.Find("t.bool")->Bool(), true);
  EXPECT_EQ(file.Find("t.string")->Text(), "Grüße");
  EXPECT_THAT(*file.Find("t.strings")->Texts(), ElementsAre("a", "bc", "ü"));
  EXPECT_THAT(*file.Find("t.integers")->Integers(), ElementsAre(3, -1, 2));
  EXPECT_THAT(*file.Find("t.floats")->Floats(), ElementsAre(0.25f, -1.5f));
  EXPECT_EQ(file.Find("t.other"), nullptr);
  EXPECT_EQ(file.Find("t.string")->Integer(), std::nullopt);
  EXPECT_EQ(file.Find("t.uint8")->Text(), std::nullopt);
  EXPECT_EQ(file.Find("t.strings")->Text(), std::nullopt);
  EXPECT_EQ(file.Find("t.integers")->Integer(), std::nullopt);
  EXPECT_EQ(file.Find("t.string")->Texts(), std::nullopt);
}

// Of every type: F32, F16, BF16 and the eight with blocks.
TEST(GgufFile, HasTheValuesOfPyPiGgufBitForBit) {
  const auto file = GgufFile::Open(kBlocks);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto expected = SafetensorsFile::Open(C3PO_TESTDATA_DIR "/gguf/blocks.expected.safetensors");
  ASSERT_TRUE(expected.ok()) << expected.status();
  ASSERT_EQ((*file)->tensors().size(), 11u);
  for (const auto& [name, view] : (*file)->tensors()) {
    EXPECT_EQ(DTypeName(view.dtype), name);
    const TensorView* const want = (*expected)->Find(name);
    ASSERT_NE(want, nullptr) << name;
    ASSERT_EQ(view.shape, want->shape) << name;
    ASSERT_EQ(view.elements(), want->elements()) << name;
    std::vector<float> values(static_cast<size_t>(view.elements()));
    std::vector<uint16_t> halves(values.size());
    ToFloat32(view.dtype, view.bytes.data(), view.elements(), values.data());
    ToBfloat16(view.dtype, view.bytes.data(), view.elements(), halves.data());
    EXPECT_EQ(std::memcmp(values.data(), want->bytes.data(), want->bytes.size()), 0) << name;
    std::vector<uint16_t> rounded(values.size());
    ToBfloat16(DType::kF32, want->bytes.data(), want->elements(), rounded.data());
    EXPECT_EQ(halves, rounded) << name;
  }
}

TEST(GgufBlocks, AreTakenWhole) {
  const std::vector<std::byte> bytes(210);
  std::vector<float> values(256);
  EXPECT_THROW(DequantizeBlocks(DType::kQ6_K, bytes.data(), 255, values.data()), std::invalid_argument);
  EXPECT_THROW(DequantizeBlocks(DType::kF32, bytes.data(), 32, values.data()), std::invalid_argument);
}

TEST(GgufFile, IsCutNowhereUnseen) {
  const std::string whole = TwoTensors().Bytes();
  ASSERT_TRUE(StatusOf(whole).ok());
  TestFolder folder;
  const std::string path = folder.path() + "/cut.gguf";
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    folder.Write("cut.gguf", whole.substr(0, bytes));
    const auto file = GgufFile::Open(path);
    ASSERT_EQ(file.status().code(), absl::StatusCode::kDataLoss) << bytes << ": " << file.status();
  }
}

TEST(GgufFile, WithoutTensorsEndsAnywhereInItsPadding) {
  GgufContent content;
  content.AddText("general.architecture", "none");
  EXPECT_TRUE(StatusOf(content.Header()).ok());
  EXPECT_TRUE(StatusOf(content.Bytes()).ok());
}

TEST(GgufFile, RefusesOtherFormatsAndVersions) {
  GgufContent content = TwoTensors();
  content.magic = "GGML";
  EXPECT_THAT(ErrorOf(content), HasSubstr("not a GGUF file"));
  content = TwoTensors();
  content.version = 1;
  EXPECT_THAT(ErrorOf(content), HasSubstr("GGUF version 1 is not supported"));
  content.version = 3u << 24;
  EXPECT_THAT(ErrorOf(content), HasSubstr("GGUF of big-endian numbers is not supported"));
  content.version = 2;
  EXPECT_EQ(ErrorOf(content), "");
}

TEST(GgufFile, RefusesTypesByName) {
  GgufContent content = TwoTensors();
  content.tensors[0].type = 10;
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"a\": type Q2_K is not supported"));
  content.tensors[0].type = 4711;
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"a\": type number 4711 is not supported"));
  EXPECT_EQ(StatusOf(content.Bytes()).code(), absl::StatusCode::kUnimplemented);
}

TEST(GgufFile, RefusesTensorsThatLieWrong) {
  GgufContent content = TwoTensors();
  content.tensors[1].offset = 0;
  EXPECT_THAT(ErrorOf(content), HasSubstr("overlaps another one"));
  content.tensors[1].offset = 40;
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"b\": offset 40 is no multiple of the alignment 32"));
  content.tensors[1].offset = 64;
  EXPECT_THAT(ErrorOf(content), HasSubstr("bytes 16 to 64 of the data before it belong to no tensor"));
  content = TwoTensors();
  content.data.resize(65);
  EXPECT_THAT(ErrorOf(content), HasSubstr("truncated: tensor \"b\" has 34 bytes"));
  content.data.resize(66 + 32);
  EXPECT_THAT(ErrorOf(content), HasSubstr("data after the last tensor: 32 bytes"));
  content = TwoTensors();
  content.tensors[1].name = "a";
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"a\" appears twice"));
}

TEST(GgufFile, RefusesShapesThatOverflowOrAreNoWholeBlocks) {
  GgufContent content = TwoTensors();
  content.tensors[0].dimensions = {uint64_t{1} << 32, uint64_t{1} << 32};
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"a\": shape overflows"));
  content.tensors[0].dimensions = {uint64_t{1} << 63};
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"a\": shape overflows"));
  content.tensors[0].dimensions = {uint64_t{1} << 62};
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"a\": shape overflows"));
  content.tensors[0].dimensions = {2, 0};
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"a\": has a dimension of 0"));
  content.tensors[0].dimensions = {1, 1, 1, 2, 2};
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"a\": has 5 dimensions"));
  content = TwoTensors();
  content.tensors[1].dimensions = {16, 2};
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"b\": rows of 16 elements are no whole blocks of Q8_0"));
}

TEST(GgufFile, RefusesHugeCounts) {
  const std::string start = "GGUF" + GgufBytes(uint32_t{3});
  constexpr uint64_t kHuge = ~uint64_t{0};
  EXPECT_THAT(std::string(StatusOf(start + GgufBytes(kHuge) + GgufBytes(uint64_t{0})).message()),
              HasSubstr("tensors, at most"));
  EXPECT_THAT(std::string(StatusOf(start + GgufBytes(uint64_t{0}) + GgufBytes(kHuge)).message()),
              HasSubstr("metadata entries, at most"));
  for (const GgufType type : {GgufType::kString, GgufType::kUint64, GgufType::kUint8}) {
    GgufContent content = TwoTensors();
    content.Add("k", GgufType::kArray, GgufBytes(static_cast<uint32_t>(type)) + GgufBytes(kHuge));
    EXPECT_EQ(StatusOf(content.Bytes()).code(), absl::StatusCode::kDataLoss);
  }
  GgufContent content = TwoTensors();
  content.Add("k", GgufType::kString, GgufBytes(kHuge));
  EXPECT_THAT(ErrorOf(content), HasSubstr("truncated: key \"k\""));
}

TEST(GgufFile, RefusesMetadataThatBreaksTheFormat) {
  GgufContent content = TwoTensors();
  content.Add("k", static_cast<GgufType>(13), "");
  EXPECT_THAT(ErrorOf(content), HasSubstr("key \"k\": type 13 is none of metadata's"));
  content = TwoTensors();
  content.Add("k", GgufType::kArray, GgufBytes(uint32_t{9}) + GgufBytes(uint64_t{1}));
  EXPECT_THAT(ErrorOf(content), HasSubstr("key \"k\": an array of arrays is not taken"));
  content = TwoTensors();
  content.Add("k", GgufType::kBool, "\2");
  EXPECT_THAT(ErrorOf(content), HasSubstr("key \"k\": a boolean must be 0 or 1"));
  content = TwoTensors();
  content.AddNumber("", 1);
  EXPECT_THAT(ErrorOf(content), HasSubstr("has 0 bytes, must have 1 to"));
  content = TwoTensors();
  content.AddNumber("general.architecture", 1);
  EXPECT_THAT(ErrorOf(content), HasSubstr("key \"general.architecture\" appears twice"));
  for (const uint32_t alignment : {0u, 24u, 1u << 21}) {
    content = TwoTensors();
    content.AddNumber("general.alignment", alignment);
    EXPECT_THAT(ErrorOf(content), HasSubstr("key \"general.alignment\" must be a power of two"));
  }
}

TEST(GgufFile, TakesAnotherAlignment) {
  GgufContent content = TwoTensors();
  content.AddNumber("general.alignment", 64);
  content.alignment = 64;
  EXPECT_THAT(ErrorOf(content), HasSubstr("tensor \"b\": offset 32 is no multiple of the alignment 64"));
  content.tensors[1].offset = 64;
  content.data.resize(64 + 34);
  EXPECT_EQ(ErrorOf(content), "");
}

// Any byte of the header changed: the file is refused by name, or its views and values lie inside it.
TEST(GgufFile, SurvivesTenThousandMutationsOfItsHeader) {
  constexpr uint32_t kSeed = 20261130;
  std::string text = ReadAll(kBlocks);
  const auto original = GgufFile::Open(kBlocks);
  ASSERT_TRUE(original.ok());
  size_t header = text.size();
  for (const auto& [name, view] : (*original)->tensors()) header -= view.bytes.size();
  TestFolder folder;
  const std::string path = folder.Write("m.gguf", text);
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  const auto put = [&file](size_t at, char byte) {
    file.seekp(static_cast<std::streamoff>(at));
    file.put(byte).flush();
  };
  std::mt19937 random(kSeed);
  int opened = 0;
  for (int round = 0; round < 10000; ++round) {
    const size_t at = random() % header;
    put(at, static_cast<char>(text[at] + 1 + random() % 255));
    const auto changed = GgufFile::Open(path);
    put(at, text[at]);
    if (!changed.ok()) {
      const std::string message(changed.status().message());
      ASSERT_THAT(message, HasSubstr("m.gguf")) << "round " << round;
      for (const char c : message) ASSERT_TRUE(absl::ascii_isprint(c)) << "round " << round << ": " << message;
      continue;
    }
    ++opened;
    for (const auto& [name, view] : (*changed)->tensors()) {
      int64_t elements = 1;
      for (const int64_t dimension : view.shape) elements *= dimension;
      ASSERT_EQ(view.elements(), elements) << "round " << round;
      std::vector<float> values(static_cast<size_t>(elements));
      ToFloat32(view.dtype, view.bytes.data(), elements, values.data());
    }
    for (const auto& [key, value] : (*changed)->metadata()) {
      if (const auto texts = value.Texts()) {
        ASSERT_EQ(texts->size(), value.count) << "round " << round;
      }
      if (const auto numbers = value.Integers()) {
        ASSERT_EQ(numbers->size(), value.count) << "round " << round;
      }
    }
  }
  EXPECT_GT(opened, 100);  // Names and values may well be others.
  EXPECT_LT(opened, 9900);
}

// A model of two parts, the first with metadata and tensor "a", the second with tensor "b".
struct Parts {
  GgufContent first, second;

  Parts() {
    first.AddText("general.architecture", "none");
    first.tensors = {{"a", {8}, kF32, 0}};
    second.tensors = {{"b", {8}, kF32, 0}};
    first.data = second.data = std::string(32, 'x');
  }
  void Number(uint32_t first_number, uint32_t second_number, uint32_t count, uint32_t tensors) {
    for (auto [content, number] : {std::pair{&first, first_number}, std::pair{&second, second_number}}) {
      content->AddNumber("split.no", number);
      content->AddNumber("split.count", count);
      content->AddNumber("split.tensors.count", tensors);
    }
  }
  absl::StatusOr<std::vector<std::unique_ptr<GgufFile>>> Open(absl::string_view name) const {
    TestFolder folder;
    folder.Write("m-00001-of-00002.gguf", first.Bytes());
    folder.Write("m-00002-of-00002.gguf", second.Bytes());
    return OpenGgufParts(absl::StrCat(folder.path(), "/", name));
  }
  std::string Error(absl::string_view name = "m-00001-of-00002.gguf") const {
    return std::string(Open(name).status().message());
  }
};

TEST(GgufParts, AreOpenedTogether) {
  Parts parts;
  parts.Number(0, 1, 2, 2);
  const auto opened = parts.Open("m-00001-of-00002.gguf");
  ASSERT_TRUE(opened.ok()) << opened.status();
  ASSERT_EQ(opened->size(), 2u);
  EXPECT_EQ((*opened)[0]->tensors().count("a"), 1u);
  EXPECT_EQ((*opened)[1]->tensors().count("b"), 1u);
  const auto single = OpenGgufParts(kBlocks);
  ASSERT_TRUE(single.ok()) << single.status();
  EXPECT_EQ(single->size(), 1u);
}

TEST(GgufParts, AreRefusedWhereTheyAreOthers) {
  Parts parts;
  parts.Number(0, 1, 2, 2);
  EXPECT_THAT(parts.Error("m-00002-of-00002.gguf"), HasSubstr("is part 2 of 2; name the first one"));
  EXPECT_EQ(parts.Open("n-00001-of-00002.gguf").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Parts().Error(), HasSubstr("key \"split.no\" is missing, but the file is part 0 (from 0) of 2"));
  parts = Parts();
  parts.Number(0, 0, 2, 2);
  EXPECT_THAT(parts.Error(), HasSubstr("key \"split.no\" is 0, but the file is part 1"));
  parts = Parts();
  parts.Number(0, 1, 3, 2);
  EXPECT_THAT(parts.Error(), HasSubstr("key \"split.count\" is 3"));
  parts = Parts();
  parts.Number(0, 1, 2, 3);
  EXPECT_THAT(parts.Error(), HasSubstr("\"split.tensors.count\" is not the number of tensors, 2"));
  parts = Parts();
  parts.Number(0, 1, 2, 2);
  parts.second.tensors[0].name = "a";
  EXPECT_THAT(parts.Error(), HasSubstr("tensor \"a\" is in two parts"));
}

}  // namespace
}  // namespace c3po
