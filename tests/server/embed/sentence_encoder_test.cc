#include "server/embed/sentence_encoder.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/base/device_failure.h"
#include "server/compute/aten/aten_queue.h"
#include "server/compute/cpu/cpu_queue.h"
#include "server/weights/safetensors_file.h"
#include "tests/server/embed/split_ids.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

constexpr char kGolden[] = C3PO_TESTDATA_DIR "/embed";
constexpr char kTiny[] = C3PO_TESTDATA_DIR "/embed/bert_tiny";
constexpr float kTolerance = 1e-4f;  // Of any coordinate of a unit vector.

json ReadJson(const std::string& path) {
  std::ifstream stream(path);
  return json::parse(stream);
}

std::string ReadText(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(stream), {});
}

std::vector<std::vector<float>> ReadRows(const std::string& path) {
  const auto file = SafetensorsFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  const TensorView* view = (*file)->Find("embeddings");
  std::vector<std::vector<float>> rows(view->shape[0], std::vector<float>(view->shape[1]));
  for (size_t i = 0; i < rows.size(); ++i) {
    const size_t row_bytes = rows[i].size() * sizeof(float);
    std::memcpy(rows[i].data(), view->bytes.data() + i * row_bytes, row_bytes);
  }
  return rows;
}

void ExpectRowsNear(const std::vector<std::vector<float>>& rows, const std::vector<std::vector<float>>& expected,
                    float tolerance) {
  ASSERT_EQ(rows.size(), expected.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    ASSERT_EQ(rows[i].size(), expected[i].size());
    double square = 0;
    for (size_t j = 0; j < rows[i].size(); ++j) {
      ASSERT_NEAR(rows[i][j], expected[i][j], tolerance) << "row " << i << " coordinate " << j;
      square += static_cast<double>(rows[i][j]) * rows[i][j];
    }
    EXPECT_NEAR(std::sqrt(square), 1, 1e-5);
  }
}

double Cosine(const std::vector<float>& a, const std::vector<float>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

std::shared_ptr<DeviceQueue> OnCpu() { return std::make_shared<cpu::CpuQueue>(); }

// A copy of bert_tiny that a test may spoil.
class TinyFolder : public TestFolder {
 public:
  TinyFolder() { std::filesystem::copy(kTiny, path(), std::filesystem::copy_options::recursive); }

  void SetConfig(const std::string& field, const json& value) const {
    json config = ReadJson(path() + "/config.json");
    config[field] = value;
    Write("config.json", config.dump());
  }
  absl::Status LoadStatus() const { return SentenceEncoder::Load(path(), OnCpu(), SplitIds).status(); }
  std::string LoadError() const { return std::string(LoadStatus().message()); }
  std::string Digest() const { return (*SentenceEncoder::Load(path(), OnCpu(), SplitIds))->digest(); }
};

std::unique_ptr<SentenceEncoder> LoadTiny() {
  auto encoder = SentenceEncoder::Load(kTiny, OnCpu(), SplitIds);
  EXPECT_TRUE(encoder.ok()) << encoder.status();
  return encoder.ok() ? *std::move(encoder) : nullptr;
}

TEST(SentenceEncoder, MatchesTransformersOnARandomModelWithTruncationAndPadding) {
  const auto encoder = LoadTiny();
  ASSERT_NE(encoder, nullptr);
  EXPECT_EQ(encoder->dimension(), 32);
  EXPECT_EQ(encoder->max_tokens(), 12);
  EXPECT_EQ(encoder->name(), "bert_tiny");
  const auto texts = ReadJson(absl::StrCat(kGolden, "/bert_tiny.json")).get<std::vector<std::string>>();
  const auto rows = encoder->Embed(texts);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ExpectRowsNear(*rows, ReadRows(absl::StrCat(kGolden, "/bert_tiny.safetensors")), kTolerance);
}

TEST(SentenceEncoder, MatchesTransformersOnAllMiniLmL6V2) {
  std::string folder;
  if (const char* named = std::getenv("C3PO_EMBEDDING_MODEL"); named != nullptr && *named != '\0') {
    folder = named;
  } else {
    const char* cache = std::getenv("C3PO_CACHE_DIR");
    const char* home = std::getenv("HOME");
    folder = cache != nullptr && *cache != '\0' ? cache : absl::StrCat(home == nullptr ? "" : home, "/.cache/c3po");
    folder += "/models/all-minilm-l6-v2";
  }
  ASSERT_TRUE(std::filesystem::exists(folder + "/model.safetensors"))
      << folder << " is missing: run python3 deploy/embedding_model/fetch.py, or set C3PO_EMBEDDING_MODEL";
  std::map<std::string, std::vector<int32_t>> ids;
  std::vector<std::string> texts;
  for (const json& sample : ReadJson(absl::StrCat(kGolden, "/minilm.json"))) {
    texts.push_back(sample["text"]);
    ids[texts.back()] = sample["ids"].get<std::vector<int32_t>>();
  }
  const auto encoder = SentenceEncoder::Load(folder, OnCpu(), [&ids](absl::string_view text) {
    return absl::StatusOr<std::vector<int32_t>>(ids.at(std::string(text)));
  });
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  EXPECT_EQ((*encoder)->dimension(), 384);
  EXPECT_EQ((*encoder)->max_tokens(), 256);
  const auto rows = (*encoder)->Embed(texts);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ExpectRowsNear(*rows, ReadRows(absl::StrCat(kGolden, "/minilm.safetensors")), kTolerance);

  // Rounded matrices find the same nearest text.
  constexpr double kRounding = 5e-5;
  const auto rounded = SentenceEncoder::Load(
      folder, OnCpu(),
      [&ids](absl::string_view text) { return absl::StatusOr<std::vector<int32_t>>(ids.at(std::string(text))); },
      SentenceEncoder::Weights::kBfloat16);
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  const auto other = (*rounded)->Embed(texts);
  ASSERT_TRUE(other.ok()) << other.status();
  const auto nearest = [&](const std::vector<std::vector<float>>& of, size_t i) {
    size_t best = i == 0 ? 1 : 0;
    for (size_t j = 0; j < of.size(); ++j) {
      if (j != i && Cosine(of[i], of[j]) > Cosine(of[i], of[best])) best = j;
    }
    return best;
  };
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_GT(Cosine((*other)[i], (*rows)[i]), 1 - kRounding) << texts[i];
    EXPECT_EQ(nearest(*other, i), nearest(*rows, i)) << texts[i];
  }
}

TEST(SentenceEncoder, ARowDoesNotDependOnTheOtherTexts) {
  const auto encoder = LoadTiny();
  ASSERT_NE(encoder, nullptr);
  std::vector<std::string> texts;
  for (int i = 0; i < 1000; ++i) {  // More than one batch.
    texts.push_back("1");
    for (int j = 0; j < i % 11; ++j) absl::StrAppend(&texts.back(), " ", 3 + (i * 7 + j * 13) % 47);
  }
  const auto together = encoder->Embed(texts);
  ASSERT_TRUE(together.ok()) << together.status();
  std::vector<std::vector<float>> alone;
  for (const std::string& text : texts) alone.push_back(encoder->Embed({text})->front());
  EXPECT_EQ(*together, alone);  // To the bit.
}

TEST(SentenceEncoder, EmbedsNothingToNothing) {
  const auto encoder = LoadTiny();
  ASSERT_NE(encoder, nullptr);
  const auto rows = encoder->Embed({});
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_TRUE(rows->empty());
}

TEST(SentenceEncoder, ServesSeveralThreads) {
  const auto encoder = LoadTiny();
  ASSERT_NE(encoder, nullptr);
  const std::vector<std::string> texts = {"1 5 2", "1 9 8 7 6 2", "1 2"};
  const auto expected = encoder->Embed(texts);
  ASSERT_TRUE(expected.ok());
  std::vector<absl::StatusOr<std::vector<std::vector<float>>>> results(4, absl::UnknownError("not run"));
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) result = encoder->Embed(texts);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) {
    ASSERT_TRUE(result.ok()) << result.status();
    ExpectRowsNear(*result, *expected, 1e-6f);
  }
}

TEST(SentenceEncoder, NamesTheTextThatCannotBeEmbedded) {
  const auto encoder = LoadTiny();
  ASSERT_NE(encoder, nullptr);
  const auto error = [&encoder](const std::string& bad) {
    const absl::Status status = encoder->Embed({"1 2", bad}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << bad;
    return std::string(status.message());
  };
  EXPECT_THAT(error(""), AllOf(HasSubstr("texts[1]"), HasSubstr("no tokens")));
  EXPECT_THAT(error("1 50 2"), AllOf(HasSubstr("texts[1]"), HasSubstr("token 50"), HasSubstr("vocabulary of 50")));
  EXPECT_THAT(error("1 -1 2"), HasSubstr("token -1"));
  EXPECT_THAT(error("word"), AllOf(HasSubstr("texts[1]"), HasSubstr("not a number")));
}

TEST(SentenceEncoder, ReadsHalfPrecisionWeights) {
  const auto file = SafetensorsFile::Open(absl::StrCat(kTiny, "/model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  json header = json::object();
  std::string data;
  for (const std::string& name : (*file)->names()) {
    const TensorView* view = (*file)->Find(name);
    const size_t begin = data.size();
    // The upper half of a float32 is its bfloat16, rounded toward zero.
    for (size_t i = 2; i < view->bytes.size(); i += 4) {
      data.append(reinterpret_cast<const char*>(view->bytes.data()) + i, 2);
    }
    header[name] = {{"dtype", "BF16"}, {"shape", view->shape}, {"data_offsets", {begin, data.size()}}};
  }
  TinyFolder folder;
  folder.Write("model.safetensors", SafetensorsText(header.dump(), data));
  const auto half = SentenceEncoder::Load(folder.path(), OnCpu(), SplitIds);
  ASSERT_TRUE(half.ok()) << half.status();
  const std::string text = "1 5 9 2";
  ExpectRowsNear(*(*half)->Embed({text}), *LoadTiny()->Embed({text}), 0.05f);
  EXPECT_NE((*half)->digest(), LoadTiny()->digest());
}

TEST(SentenceEncoder, RefusesSettingsThatItDoesNotImplementByName) {
  const std::pair<const char*, json> refused[] = {{"model_type", "roberta"},
                                                  {"hidden_act", "gelu_new"},
                                                  {"position_embedding_type", "relative_key"},
                                                  {"is_decoder", true},
                                                  {"num_attention_heads", 5},
                                                  {"num_hidden_layers", 0},
                                                  {"hidden_size", "32"},
                                                  {"intermediate_size", 1.5},
                                                  {"vocab_size", nullptr},
                                                  {"max_position_embeddings", -1},
                                                  {"type_vocab_size", 1e300},
                                                  {"layer_norm_eps", 0}};
  for (const auto& [field, value] : refused) {
    TinyFolder folder;
    folder.SetConfig(field, value);
    EXPECT_EQ(folder.LoadStatus().code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(folder.LoadError(), AllOf(HasSubstr("config.json"), HasSubstr(field)));
  }
}

TEST(SentenceEncoder, RefusesPoolingModulesAndLengthsThatItDoesNotImplement) {
  TinyFolder folder;
  folder.Write("sentence_bert_config.json", R"({"max_seq_length": 17})");
  EXPECT_THAT(folder.LoadError(), AllOf(HasSubstr("sentence_bert_config.json"), HasSubstr("max_seq_length")));
  folder.Write("sentence_bert_config.json", R"({"do_lower_case": true})");
  EXPECT_THAT(folder.LoadError(), HasSubstr("do_lower_case"));
  folder.Write("sentence_bert_config.json", "{");
  EXPECT_THAT(folder.LoadError(), HasSubstr("sentence_bert_config.json: not JSON"));
  folder.Write("sentence_bert_config.json", "{}");
  ASSERT_TRUE(folder.LoadStatus().ok()) << folder.LoadStatus();
  EXPECT_EQ((*SentenceEncoder::Load(folder.path(), OnCpu(), SplitIds))->max_tokens(), 16);

  folder.Write("modules.json", R"([{"type": "sentence_transformers.models.Dense"}])");
  EXPECT_THAT(folder.LoadError(), AllOf(HasSubstr("modules.json"), HasSubstr("Dense")));
  folder.Write("modules.json", R"([{"type": "sentence_transformers.models.Pooling"}])");
  std::filesystem::create_directory(folder.path() + "/1_Pooling");
  folder.Write("1_Pooling/config.json", R"({"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true})");
  EXPECT_THAT(folder.LoadError(), HasSubstr("pooling_mode_cls_token"));
  folder.Write("1_Pooling/config.json", R"({"pooling_mode_mean_tokens": false})");
  EXPECT_THAT(folder.LoadError(), HasSubstr("pooling_mode_mean_tokens"));

  // Where modules.json says that the pooling is; not where it usually is.
  folder.Write("1_Pooling/config.json", "{}");
  folder.Write("modules.json", R"([{"type": "sentence_transformers.models.Pooling", "path": "3_Pooling"}])");
  std::filesystem::create_directory(folder.path() + "/3_Pooling");
  folder.Write("3_Pooling/config.json", R"({"pooling_mode_cls_token": true})");
  EXPECT_THAT(folder.LoadError(), AllOf(HasSubstr("3_Pooling"), HasSubstr("pooling_mode_cls_token")));
  folder.Write("modules.json", R"([{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}])");
  EXPECT_THAT(folder.LoadError(), AllOf(HasSubstr("modules.json"), HasSubstr("Transformer")));
  folder.Write("modules.json", "[]");
  folder.Write("config_sentence_transformers.json",
               R"({"prompts": {"query": "query: "}, "default_prompt_name": null})");
  EXPECT_TRUE(folder.LoadStatus().ok()) << folder.LoadStatus();
  folder.Write("config_sentence_transformers.json", R"({"default_prompt_name": "query"})");
  EXPECT_THAT(folder.LoadError(), HasSubstr("default_prompt_name"));
}

TEST(SentenceEncoder, NamesWhatIsDamaged) {
  TinyFolder folder;
  folder.SetConfig("intermediate_size", 49);
  EXPECT_THAT(folder.LoadError(), AllOf(HasSubstr("encoder.layer.0.intermediate.dense.weight"), HasSubstr("[49, 32]")));
  folder.SetConfig("intermediate_size", 48);
  folder.SetConfig("num_hidden_layers", 4);
  EXPECT_EQ(folder.LoadStatus().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(folder.LoadError(), HasSubstr("encoder.layer.3."));
  folder.SetConfig("num_hidden_layers", 3);
  ASSERT_TRUE(folder.LoadStatus().ok()) << folder.LoadStatus();
  const std::string whole = ReadText(absl::StrCat(kTiny, "/model.safetensors"));
  folder.Write("model.safetensors", whole.substr(0, whole.size() - 1));
  EXPECT_EQ(folder.LoadStatus().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(folder.LoadError(), HasSubstr("model.safetensors"));
  folder.Write("config.json", "not json");
  folder.Write("model.safetensors", whole);
  EXPECT_THAT(folder.LoadError(), HasSubstr("config.json: not JSON"));
}

// All that it asks of a queue: libtorch's products give what ours give.
TEST(SentenceEncoder, GivesTheSameRowsOnAnyQueue) {
  auto queue = aten::AtenQueue::Create(at::kCPU);
  ASSERT_TRUE(queue.ok()) << queue.status();
  const auto encoder = SentenceEncoder::Load(kTiny, *std::move(queue), SplitIds);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  const std::vector<std::string> texts = {"1 5 2", "1 9 8 7 6 2", "1 2"};
  const auto rows = (*encoder)->Embed(texts);
  ASSERT_TRUE(rows.ok()) << rows.status();
  ExpectRowsNear(*rows, *LoadTiny()->Embed(texts), 1e-5f);
}

// A queue on a device that fails once `broken`, as libtorch tells it.
class BreakableQueue final : public DeviceQueue {
 public:
  void Run(absl::FunctionRef<void()> work) override { queue_.Run(work); }
  at::Tensor FromHost(const at::Tensor& host) override { return queue_.FromHost(host); }
  at::Tensor ToHost(const at::Tensor& x) override { return queue_.ToHost(x); }
  at::Tensor Linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) override {
    if (broken)
      throw c10::AcceleratorError({__func__, __FILE__, __LINE__}, 700, "CUDA error: an illegal memory access");
    return queue_.Linear(x, weight, bias);
  }

  bool broken = false;

 private:
  cpu::CpuQueue queue_;
};

// One GPU, one record: the model on it serves no more either.
TEST(SentenceEncoder, FailureOfItsDeviceIsTheServers) {
  const auto queue = std::make_shared<BreakableQueue>();
  const auto encoder = SentenceEncoder::Load(kTiny, queue, SplitIds);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  ASSERT_TRUE((*encoder)->Embed({"1 5 2"}).ok());
  EXPECT_TRUE(DeviceFailure().ok());
  queue->broken = true;
  const absl::Status status = (*encoder)->Embed({"1 5 2"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("the device failed: embedding: CUDA error: an illegal memory access"));
  EXPECT_EQ(DeviceFailure(), status);
  ForgetDeviceFailure();
}

// The words' embeddings take no memory, and a file that was written to gives no rows of another model.
TEST(SentenceEncoder, ReadsItsWordsFromTheFileThatItWasLoadedFrom) {
  const auto file = SafetensorsFile::Open(absl::StrCat(kTiny, "/model.safetensors"));
  ASSERT_TRUE(file.ok()) << file.status();
  int64_t others = 0;
  for (const std::string& name : (*file)->names()) {
    const bool left_out = name == "embeddings.word_embeddings.weight" ||
                          name == "embeddings.token_type_embeddings.weight" ||  // Added to the positions.
                          name.find("position_ids") != std::string::npos || name.rfind("pooler.", 0) == 0;
    if (!left_out) others += static_cast<int64_t>((*file)->Find(name)->bytes.size());
  }
  EXPECT_EQ(LoadTiny()->weight_bytes(), others);

  TinyFolder folder;
  const auto encoder = SentenceEncoder::Load(folder.path(), OnCpu(), SplitIds);
  ASSERT_TRUE(encoder.ok()) << encoder.status();
  const std::string text = "1 5 9 2", path = folder.path() + "/model.safetensors";
  const auto before = (*encoder)->Embed({text});
  EXPECT_EQ(*before, *LoadTiny()->Embed({text}));
  // Another file of this name is another model's.
  std::filesystem::copy(path, path + ".next");
  std::filesystem::rename(path + ".next", path);
  EXPECT_EQ(*(*encoder)->Embed({text}), *before);

  const auto opened = SentenceEncoder::Load(folder.path(), OnCpu(), SplitIds);
  ASSERT_TRUE(opened.ok()) << opened.status();
  std::filesystem::last_write_time(path, std::filesystem::last_write_time(path) + std::chrono::seconds(1));
  const absl::Status status = (*opened)->Embed({text}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr("written to")));
}

// Rounded matrices: half their memory, nearly the same rows, and a digest that keeps references of both apart.
TEST(SentenceEncoder, HoldsItsMatricesInBfloat16WhereAsked) {
  const auto load = [](std::shared_ptr<DeviceQueue> queue) {
    auto encoder = SentenceEncoder::Load(kTiny, std::move(queue), SplitIds, SentenceEncoder::Weights::kBfloat16);
    EXPECT_TRUE(encoder.ok()) << encoder.status();
    return *std::move(encoder);
  };
  const auto exact = LoadTiny(), rounded = load(OnCpu());
  EXPECT_NE(rounded->digest(), exact->digest());
  EXPECT_LT(rounded->weight_bytes(), 0.6 * static_cast<double>(exact->weight_bytes()));
  const auto texts = ReadJson(absl::StrCat(kGolden, "/bert_tiny.json")).get<std::vector<std::string>>();
  const auto expected = *exact->Embed(texts), got = *rounded->Embed(texts);
  EXPECT_NE(got, expected);
  for (size_t i = 0; i < texts.size(); ++i) {
    EXPECT_GT(Cosine(got[i], expected[i]), 0.9999) << texts[i];
    EXPECT_EQ(got[i], rounded->Embed({texts[i]})->front());  // In any batch, to the bit.
  }
  auto queue = aten::AtenQueue::Create(at::kCPU);
  ASSERT_TRUE(queue.ok()) << queue.status();
  ExpectRowsNear(*load(*std::move(queue))->Embed(texts), got, 1e-5f);
}

TEST(SentenceEncoder, DigestFollowsLengthAndTokenizer) {
  TinyFolder folder;
  const std::string digest = folder.Digest();
  EXPECT_EQ(digest, LoadTiny()->digest());
  folder.Write("tokenizer.json", "{}");
  const std::string with_tokenizer = folder.Digest();
  EXPECT_NE(with_tokenizer, digest);
  folder.Write("sentence_bert_config.json", R"({"max_seq_length": 11})");
  EXPECT_NE(folder.Digest(), with_tokenizer);
}

}  // namespace
}  // namespace c3po
