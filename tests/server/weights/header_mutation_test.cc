// One byte of what a model folder says about its tensors is changed, anywhere: the folder loads to the same tensors, or
// is refused with a message that names file or tensor. C3PO_HEADER_MUTATIONS sets how many changes are tried per file
// (deploy/sanitize.sh tries 10,000 of them under AddressSanitizer).

#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <sstream>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/base/status_macros.h"
#include "server/model/config/tensor_plan.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

constexpr uint32_t kSeed = 20251122;

int Rounds() {
  int rounds = 300;
  if (const char* text = std::getenv("C3PO_HEADER_MUTATIONS")) {
    EXPECT_TRUE(absl::SimpleAtoi(text, &rounds)) << text;
  }
  return rounds;
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string HeaderField(const std::string& name, const TensorView& view, size_t begin) {
  return absl::StrCat("\"", name, R"(":{"dtype":")", DTypeName(view.dtype), R"(","shape":)", ShapeString(view.shape),
                      R"(,"data_offsets":[)", begin, ",", begin + view.bytes.size(), "]}");
}

// Everything that loading takes from a folder: dtype, shape and bytes by name.
struct Tensor {
  DType dtype;
  std::vector<int64_t> shape;
  std::string bytes;
  bool operator==(const Tensor& other) const {
    return dtype == other.dtype && shape == other.shape && bytes == other.bytes;
  }
};
using Tensors = std::map<std::string, Tensor>;

// As loading does, up to where memory is taken for the weights.
absl::StatusOr<Tensors> LoadTensors(const std::string& folder) {
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(folder));
  C3PO_ASSIGN_OR_RETURN(const ModelConfig config, ReadConfig(*checkpoint));
  C3PO_RETURN_IF_ERROR(CheckTensors(*checkpoint, config));
  Tensors tensors;
  for (const std::string& name : checkpoint->names()) {
    const TensorView view = *checkpoint->Find(name);
    tensors[name] = {view.dtype, view.shape,
                     std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size())};
  }
  return tensors;
}

class HeaderMutation : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string source = absl::StrCat(C3PO_TESTDATA_DIR, "/model/", GetParam());
    folder_.Write("config.json", ReadAll(source + "/config.json"));
    source_ = source + "/model.safetensors";
  }

  void WriteWhole() { folder_.Write("model.safetensors", ReadAll(source_)); }

  // Every other tensor goes into the second shard.
  void WriteShards() {
    const auto file = SafetensorsFile::Open(source_);
    ASSERT_TRUE(file.ok()) << file.status();
    std::vector<std::string> fields[2], places;
    std::string data[2];
    for (const std::string& name : (*file)->names()) {
      const TensorView view = *(*file)->Find(name);
      const int shard = places.size() % 2;
      fields[shard].push_back(HeaderField(name, view, data[shard].size()));
      data[shard].append(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
      places.push_back(absl::StrCat("\"", name, "\":\"", Shard(shard), "\""));
    }
    for (int shard = 0; shard < 2; ++shard) {
      folder_.Write(Shard(shard),
                    SafetensorsText(absl::StrCat("{", absl::StrJoin(fields[shard], ","), "}"), data[shard]));
    }
    folder_.Write(kIndex,
                  absl::StrCat(R"({"metadata":{"total_size":1},"weight_map":{)", absl::StrJoin(places, ","), "}}"));
  }
  static std::string Shard(int shard) { return absl::StrCat("model-0000", shard + 1, "-of-00002.safetensors"); }

  // Changes one of the file's first `bytes` bytes, Rounds() times.
  void Mutate(const std::string& name, size_t bytes) {
    const auto original = LoadTensors(folder_.path());
    ASSERT_TRUE(original.ok()) << original.status();
    const std::string path = folder_.path() + "/" + name;
    const std::string text = ReadAll(path).substr(0, bytes);
    ASSERT_EQ(text.size(), bytes);
    std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
    const auto put = [&file](size_t at, char byte) {
      file.seekp(static_cast<std::streamoff>(at));
      file.put(byte).flush();
    };
    std::mt19937 random(kSeed);
    for (int round = 0, rounds = Rounds(); round < rounds; ++round) {
      const size_t at = random() % bytes;
      const char byte = static_cast<char>(text[at] + 1 + random() % 255);
      put(at, byte);
      const auto loaded = LoadTensors(folder_.path());
      put(at, text[at]);
      const std::string where = absl::StrCat("seed ", kSeed, ", round ", round, ", ", name, " byte ", at, " to ",
                                             static_cast<int>(static_cast<unsigned char>(byte)));
      if (loaded.ok()) {
        ++loaded_;
        ASSERT_TRUE(*loaded == *original) << where;
        continue;
      }
      const std::string message(loaded.status().message());
      ASSERT_THAT(message, AnyOf(HasSubstr(name), HasSubstr("tensor "))) << where;
      for (const char c : message) ASSERT_TRUE(absl::ascii_isprint(c)) << where << ": " << message;
    }
    ASSERT_TRUE(file.good());
  }

  static constexpr char kIndex[] = "model.safetensors.index.json";
  TestFolder folder_;
  std::string source_;
  int loaded_ = 0;  // Of the changed folders.
};

size_t HeaderBytes(const std::string& path) {
  const std::string text = ReadAll(path);
  size_t bytes = 0;
  for (int i = 7; i >= 0; --i) bytes = bytes << 8 | static_cast<unsigned char>(text[i]);
  return 8 + bytes;
}

TEST_P(HeaderMutation, OfOneFileLoadsTheSameTensorsOrIsRefused) {
  WriteWhole();
  Mutate("model.safetensors", HeaderBytes(source_));
}

TEST_P(HeaderMutation, OfAShardLoadsTheSameTensorsOrIsRefused) {
  WriteShards();
  Mutate(Shard(1), HeaderBytes(folder_.path() + "/" + Shard(1)));
}

TEST_P(HeaderMutation, OfTheIndexLoadsTheSameTensorsOrIsRefused) {
  WriteShards();
  Mutate(kIndex, ReadAll(folder_.path() + "/" + kIndex).size());
}

TEST_P(HeaderMutation, OfMetadataChangesNothing) {
  const std::string text = ReadAll(source_);
  const size_t at = text.find("\"format\":\"pt\"");
  ASSERT_NE(at, std::string::npos);
  folder_.Write("model.safetensors", text);
  const auto original = LoadTensors(folder_.path());
  ASSERT_TRUE(original.ok()) << original.status();
  folder_.Write("model.safetensors", std::string(text).replace(at + 10, 1, "q"));
  const auto changed = LoadTensors(folder_.path());
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_TRUE(*changed == *original);
}

INSTANTIATE_TEST_SUITE_P(Families, HeaderMutation, testing::Values("mixtral_dense_tiny", "deepseek_tiny"));

}  // namespace
}  // namespace c3po
