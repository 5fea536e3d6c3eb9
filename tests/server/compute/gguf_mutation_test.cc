// Damaged GGUF models: refused by a message that says where, or read without leaving the file.

#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/model/config/gguf_model.h"
#include "server/model/config/tensor_plan.h"
#include "server/weights/gguf_file.h"
#include "server/weights/stored_elements.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

std::string GoldenPath(const std::string& family) { return absl::StrCat(C3PO_TESTDATA_DIR, "/gguf/", family, ".gguf"); }

std::string ReadAll(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

// Where the data begin, but for padding.
size_t HeaderBytes(const std::string& path) {
  const auto file = GgufFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  size_t bytes = ReadAll(path).size();
  for (const auto& [name, view] : (*file)->tensors()) bytes -= view.bytes.size();
  return bytes;
}

// Opens a model, checks it against its configuration and reads every element.
absl::Status ReadModel(const std::string& path) {
  const auto checkpoint = OpenGgufModel(path);
  if (!checkpoint.ok()) return checkpoint.status();
  const auto config = ReadConfig(**checkpoint);
  if (!config.ok()) return config.status();
  for (const std::string& name : (*checkpoint)->names()) {
    const auto view = (*checkpoint)->Find(name);
    if (!view.ok()) return view.status();
    std::vector<float> values(static_cast<size_t>(view->elements()));
    ToFloat32(view->dtype, view->bytes.data(), view->elements(), values.data());
  }
  return CheckTensors(**checkpoint, *config);
}

// Any byte of the header changed.
TEST(DamagedGgufModels, SurviveTenThousandMutationsOfTheirHeaders) {
  std::mt19937 random(20261130);
  for (const char* family : {"mixtral_llama3", "qwen2_moe_fused", "deepseek_v2_groups", "granite_moe"}) {
    const std::string text = ReadAll(GoldenPath(family));
    const size_t header = HeaderBytes(GoldenPath(family));
    TestFolder folder;
    const std::string path = folder.Write("m.gguf", text);
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    const auto put = [&file](size_t at, char byte) {
      file.seekp(static_cast<std::streamoff>(at));
      file.put(byte).flush();
    };
    int taken = 0, refused = 0;
    for (int round = 0; round < 2500; ++round) {
      const size_t at = random() % header;
      put(at, static_cast<char>(text[at] + 1 + random() % 255));
      const absl::Status status = ReadModel(path);
      put(at, text[at]);
      ++(status.ok() ? taken : refused);
      if (status.ok()) continue;
      ASSERT_THAT(std::string(status.message()), AnyOf(HasSubstr("m.gguf"), HasSubstr("tensor ")))
          << family << ", round " << round;
    }
    EXPECT_GT(taken, 100) << family;  // Pieces of the vocabulary may well be others.
    EXPECT_GT(refused, 100) << family;
  }
}

TEST(DamagedGgufModels, AreCutNowhereUnseen) {
  const std::string text = ReadAll(GoldenPath("mixtral_llama3"));
  const size_t header = HeaderBytes(GoldenPath("mixtral_llama3"));
  TestFolder folder;
  for (size_t bytes = 0; bytes < text.size(); bytes += bytes < header ? 1 : 997) {
    const absl::Status status = ReadModel(folder.Write("m.gguf", text.substr(0, bytes)));
    ASSERT_EQ(status.code(), absl::StatusCode::kDataLoss) << bytes << ": " << status;
  }
}

}  // namespace
}  // namespace c3po
