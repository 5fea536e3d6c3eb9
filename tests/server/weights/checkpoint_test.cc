#include "server/weights/checkpoint.h"

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/base/sha256.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kConfig[] = R"({"model_type":"olmoe"})";

std::string OneTensor(absl::string_view name, absl::string_view data) {
  return SafetensorsText(absl::StrCat(R"({")", name, R"(":{"dtype":"U8","shape":[1,)", data.size(),
                                      R"(],"data_offsets":[0,)", data.size(), "]}}"),
                         data);
}

std::string Bytes(const TensorView& view) {
  return std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size());
}

void WriteShards(const TestFolder& folder) {
  folder.Write("config.json", kConfig);
  folder.Write("model-00001-of-00002.safetensors", OneTensor("b", "beta"));
  folder.Write("model-00002-of-00002.safetensors", OneTensor("a", "alpha"));
  folder.Write("model.safetensors.index.json",
               R"({"metadata":{"total_size":9},"weight_map":{"b":"model-00001-of-00002.safetensors",)"
               R"("a":"model-00002-of-00002.safetensors"}})");
}

std::string ErrorOf(const TestFolder& folder) {
  return std::string(Checkpoint::Open(folder.path()).status().message());
}

TEST(Checkpoint, FindsTensorsInOneFileAndNamesAMissingOne) {
  TestFolder folder;
  folder.Write("config.json", kConfig);
  folder.Write("model.safetensors", OneTensor("a", "alpha"));
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->names(), ElementsAre("a"));
  EXPECT_EQ((*checkpoint)->config_json(), kConfig);
  EXPECT_TRUE((*checkpoint)->Has("a"));
  const auto view = (*checkpoint)->Find("a");
  ASSERT_TRUE(view.ok());
  EXPECT_EQ(Bytes(*view), "alpha");
  const auto missing = (*checkpoint)->Find("lm_head.weight");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), AllOf(HasSubstr(folder.path()), HasSubstr("lm_head.weight")));
}

TEST(Checkpoint, FindsTensorsInShards) {
  TestFolder folder;
  WriteShards(folder);
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->names(), ElementsAre("a", "b"));
  EXPECT_EQ(Bytes(*(*checkpoint)->Find("a")), "alpha");
  EXPECT_EQ(Bytes(*(*checkpoint)->Find("b")), "beta");
}

TEST(Checkpoint, ShowsTensorsThatAShardHoldsAndTheIndexDoesNotList) {
  TestFolder folder;
  WriteShards(folder);
  folder.Write("model.safetensors.index.json",
               R"({"weight_map":{"a":"model-00002-of-00002.safetensors","b":"model-00001-of-00002.safetensors"}})");
  folder.Write("model-00001-of-00002.safetensors",
               SafetensorsText(R"({"b":{"dtype":"U8","shape":[1,4],"data_offsets":[0,4]},)"
                               R"("c":{"dtype":"U8","shape":[1,5],"data_offsets":[4,9]}})",
                               "betagamma"));
  const auto checkpoint = Checkpoint::Open(folder.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_THAT((*checkpoint)->names(), ElementsAre("a", "b", "c"));
}

TEST(Checkpoint, DigestIsThatOfItsDocumentedTextAndIgnoresSharding) {
  TestFolder folder;
  WriteShards(folder);
  const auto sharded = Checkpoint::Open(folder.path());
  ASSERT_TRUE(sharded.ok()) << sharded.status();
  const std::string digest = (*sharded)->Digest();
  EXPECT_EQ(digest,
            Sha256::HexOf(absl::StrCat("config.json 22\n", kConfig, "a\nU8[1, 5] 5\nalpha", "b\nU8[1, 4] 4\nbeta")));
  EXPECT_EQ((*sharded)->Digest(), digest);

  folder.Write("model.safetensors", SafetensorsText(R"({"b":{"dtype":"U8","shape":[1,4],"data_offsets":[0,4]},)"
                                                    R"("a":{"dtype":"U8","shape":[1,5],"data_offsets":[4,9]}})",
                                                    "betaalpha"));
  const auto single = Checkpoint::Open(folder.path());
  ASSERT_TRUE(single.ok()) << single.status();
  EXPECT_EQ((*single)->Digest(), digest);
}

TEST(Checkpoint, DigestChangesWithConfigNameShapeAndBytes) {
  const auto digest = [](absl::string_view config, absl::string_view weights) {
    TestFolder folder;
    folder.Write("config.json", config);
    folder.Write("model.safetensors", weights);
    return (*Checkpoint::Open(folder.path()))->Digest();
  };
  const std::string base = digest(kConfig, OneTensor("a", "alpha"));
  EXPECT_NE(base, digest("{}", OneTensor("a", "alpha")));
  EXPECT_NE(base, digest(kConfig, OneTensor("b", "alpha")));
  EXPECT_NE(base, digest(kConfig, OneTensor("a", "alphA")));
  EXPECT_NE(base,
            digest(kConfig, SafetensorsText(R"({"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}})", "alpha")));
}

TEST(Checkpoint, NamesWhatIsMissing) {
  TestFolder folder;
  EXPECT_EQ(Checkpoint::Open(folder.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(ErrorOf(folder), HasSubstr("config.json"));
  folder.Write("config.json", kConfig);
  EXPECT_EQ(Checkpoint::Open(folder.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(ErrorOf(folder), HasSubstr("model.safetensors"));
  WriteShards(folder);
  std::filesystem::remove(folder.path() + "/model-00002-of-00002.safetensors");
  EXPECT_EQ(Checkpoint::Open(folder.path()).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(ErrorOf(folder), HasSubstr("model-00002-of-00002.safetensors"));
}

TEST(Checkpoint, NamesATruncatedShard) {
  TestFolder folder;
  WriteShards(folder);
  const std::string whole = OneTensor("a", "alpha");
  folder.Write("model-00002-of-00002.safetensors", whole.substr(0, whole.size() - 1));
  EXPECT_EQ(Checkpoint::Open(folder.path()).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(ErrorOf(folder), AllOf(HasSubstr("model-00002-of-00002.safetensors"), HasSubstr("tensor \"a\"")));
}

TEST(Checkpoint, RefusesAnIndexThatLies) {
  TestFolder folder;
  WriteShards(folder);
  const auto error_with = [&folder](absl::string_view index) {
    folder.Write("model.safetensors.index.json", index);
    EXPECT_EQ(Checkpoint::Open(folder.path()).status().code(), absl::StatusCode::kInvalidArgument);
    return ErrorOf(folder);
  };
  EXPECT_THAT(error_with("{"), HasSubstr("not JSON"));
  EXPECT_THAT(error_with("[]"), HasSubstr("weight_map"));
  EXPECT_THAT(error_with(R"({"weight_map":7})"), HasSubstr("weight_map"));
  EXPECT_THAT(error_with("7"), HasSubstr("weight_map"));
  EXPECT_THAT(error_with(R"({"metadata":{"weight_map":{}}})"), HasSubstr("weight_map is missing"));
  EXPECT_THAT(error_with(R"({"weight_map":{},"weight_map":{}})"), HasSubstr("weight_map appears twice"));
  EXPECT_THAT(error_with(R"({"weight_map":{"a":7}})"), HasSubstr("weight_map[\"a\"]"));
  EXPECT_THAT(error_with(R"({"weight_map":{"a":{"b":"c.safetensors"}}})"), HasSubstr("weight_map[\"a\"]"));
  EXPECT_THAT(error_with(R"({"weight_map":{"a":"x.safetensors","a":"y.safetensors"}})"),
              HasSubstr("weight_map[\"a\"] twice"));
  EXPECT_THAT(error_with(absl::StrCat(R"({"metadata":)", std::string(1 << 20, '['))), HasSubstr("not JSON at byte"));
  EXPECT_THAT(error_with(R"({"weight_map":{"a":"../x.safetensors"}})"), HasSubstr("weight_map[\"a\"]"));
  EXPECT_THAT(error_with(R"({"weight_map":{"a":"model-00001-of-00002.safetensors"}})"),
              AllOf(HasSubstr("model-00001-of-00002.safetensors"), HasSubstr("tensor \"a\" is missing")));
}

TEST(Checkpoint, RefusesATensorThatTwoShardsHold) {
  TestFolder folder;
  WriteShards(folder);
  folder.Write("model-00001-of-00002.safetensors",
               SafetensorsText(R"({"b":{"dtype":"U8","shape":[1,4],"data_offsets":[0,4]},)"
                               R"("a":{"dtype":"U8","shape":[1,5],"data_offsets":[4,9]}})",
                               "betaALPHA"));
  EXPECT_EQ(Checkpoint::Open(folder.path()).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(ErrorOf(folder), HasSubstr("tensor \"a\" is in two shards"));
}

TEST(Checkpoint, OpensWhatTransformersWrote) {
  const auto checkpoint = Checkpoint::Open(C3PO_TESTDATA_DIR "/model/mixtral_tiny");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto view = (*checkpoint)->Find("model.embed_tokens.weight");
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_EQ(view->dtype, DType::kF32);
  EXPECT_THAT(view->shape, ElementsAre(260, 64));
  EXPECT_FALSE((*checkpoint)->Has("lm_head.weight"));  // Tied.
}

}  // namespace
}  // namespace c3po
