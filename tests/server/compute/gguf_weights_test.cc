// What llama.cpp's converter turned, merged and split of a model is put back: configuration and matrices of
// tests/golden/gguf/FAMILY.gguf are those of the Hugging Face model that it was made of, bit by bit.

#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/compute/model_weights.h"
#include "server/model/config/gguf_model.h"
#include "server/model/config/tensor_plan.h"
#include "server/weights/stored_elements.h"
#include "tests/server/weights/gguf_text.h"
#include "tests/server/weights/safetensors_text.h"

namespace c3po {
namespace {

using testing::HasSubstr;

std::string GoldenPath(const std::string& name) { return absl::StrCat(C3PO_TESTDATA_DIR, "/gguf/", name); }

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// Every field.
std::string Described(const ModelConfig& c) {
  const LatentAttention latent = c.latent.value_or(LatentAttention{-1, -1, -1});
  const RopeScaling& rope = c.rope_scaling;
  return absl::StrJoin(
      std::vector<std::string>{
          absl::StrCat("family ", static_cast<int>(c.family), " ", c.architecture),
          absl::StrCat("sizes ", c.hidden_size, " ", c.layers, " ", c.heads, " ", c.kv_heads, " ", c.head_dim, " ",
                       c.value_dim, " ", c.rope_dim, " ", c.vocabulary_size, " ", c.context_window),
          absl::StrCat("moe ", absl::StrJoin(c.moe_layers, ","), " ", c.intermediate_size, " ", c.experts, " ",
                       c.experts_per_token, " ", c.norm_topk_prob, " ", c.routed_scaling_factor, " ", c.expert_groups,
                       " ", c.groups_per_token, " ", c.shared_intermediate_size, " ", c.shared_gate, " ",
                       c.dense_intermediate_size),
          absl::StrCat("attention ", static_cast<int>(c.qk_norm), " ", c.qkv_bias, " ", c.output_bias, " ",
                       c.clip_qkv.value_or(-1), " ", latent.query_rank, " ", latent.kv_rank, " ", latent.plain_dim, " ",
                       absl::StrFormat("%.17g", c.attention_scale)),
          absl::StrFormat("rope %.17g %d %.17g %.17g %.17g %.17g %.17g %.17g %.17g", c.rope_theta,
                          static_cast<int>(rope.type), rope.factor, rope.original_context, rope.low_frequency_factor,
                          rope.high_frequency_factor, rope.beta_fast, rope.beta_slow, rope.attention_factor),
          absl::StrFormat("rest %d %.17g %.17g %.17g %.17g", c.tied_embeddings, c.rms_norm_eps, c.embedding_multiplier,
                          c.residual_multiplier, c.logits_divisor),
          absl::StrCat("ends ", absl::StrJoin(c.eos_token_ids, ","))},
      "\n");
}

// zlib's crc32, by which make_gguf_models.py makes the weights.
uint32_t Crc32(absl::string_view text) {
  uint32_t crc = ~0u;
  for (const char c : text) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

std::vector<float> MadeWeights(const std::string& name, int64_t count) {
  std::vector<float> values;
  const uint32_t start = Crc32(name);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t mixed = start + static_cast<uint32_t>(i) * 2654435761u;
    values.push_back(static_cast<float>(mixed >> 24) / 256 - 0.5f);
  }
  return values;
}

// Hugging Face's folder of a golden model.
void WriteFolder(const std::string& family, const TestFolder& folder) {
  const std::string text = ReadAll(GoldenPath(family + ".config.json"));
  folder.Write("config.json", text);
  const auto config = ModelConfig::Parse(text, "config.json");
  ASSERT_TRUE(config.ok()) << config.status();
  std::string header, data;
  const auto write = [&](const PlannedTensor& tensor) {
    const int64_t count = std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
    const std::vector<float> values = MadeWeights(tensor.name, count);
    absl::StrAppend(&header, header.empty() ? "{" : ",", "\"", tensor.name, R"(":{"dtype":"F32","shape":)",
                    ShapeString(tensor.shape), R"(,"data_offsets":[)", data.size(), ",");
    data.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    absl::StrAppend(&header, data.size(), "]}");
    return absl::OkStatus();
  };
  ASSERT_TRUE(VisitTensors(
                  *config, [](const std::string&) { return false; }, write)
                  .ok());
  folder.Write("model.safetensors", SafetensorsText(header + "}", data));
}

// What a backend would pack: each role's matrix, filled.
using Matrices = std::map<std::pair<WeightRole, int>, std::vector<float>>;

absl::StatusOr<Matrices> Packed(const std::string& path, ModelConfig* config) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> opened = OpenCheckpoint(path);
  if (!opened.ok()) return opened.status();
  const std::shared_ptr<const Checkpoint> checkpoint = *std::move(opened);
  const auto read = ReadConfig(*checkpoint);
  if (!read.ok()) return read.status();
  *config = *read;
  const auto weights = ViewWeights(checkpoint, *config);
  if (!weights.ok()) return weights.status();
  Matrices matrices;
  PackEach(*config, *weights, nullptr, [&](const StoredWeight& stored) {
    const WeightUse& use = stored.use;
    const HostMatrix& matrix = stored.matrix;
    const MatrixShape shape = ShapeOfRole(*config, use.role, use.layer);
    std::vector<float>& whole = matrices[{use.role, use.layer}];
    whole.resize(static_cast<size_t>(shape.rows * shape.columns), -100);
    for (int64_t r = 0; r < matrix.rows; ++r) {
      ToFloat32(matrix.type, matrix.Rows(r, 1).bytes.data(), matrix.columns,
                whole.data() + use.RowOf(r, *config) * shape.columns + use.column);
    }
  });
  return matrices;
}

class GgufModel : public testing::TestWithParam<std::string> {};

TEST_P(GgufModel, HasConfigurationAndWeightsOfTheHuggingFaceFolder) {
  TestFolder folder;
  WriteFolder(GetParam(), folder);
  ModelConfig config, expected_config;
  const auto expected = Packed(folder.path(), &expected_config);
  ASSERT_TRUE(expected.ok()) << expected.status();
  const auto matrices = Packed(GoldenPath(GetParam() + ".gguf"), &config);
  ASSERT_TRUE(matrices.ok()) << matrices.status();
  EXPECT_EQ(Described(config), Described(expected_config));
  ASSERT_EQ(matrices->size(), expected->size());
  for (const auto& [key, values] : *expected) {
    ASSERT_EQ(matrices->count(key), 1u) << static_cast<int>(key.first);
    EXPECT_EQ(matrices->at(key), values) << "role " << static_cast<int>(key.first) << ", layer " << key.second;
  }
}

TEST_P(GgufModel, HasADigestOfItsContent) {
  const auto one = OpenGgufModel(GoldenPath(GetParam() + ".gguf"));
  ASSERT_TRUE(one.ok()) << one.status();
  TestFolder folder;
  std::string bytes = ReadAll(GoldenPath(GetParam() + ".gguf"));
  bytes[bytes.size() / 2] ^= 1;  // Of some weight.
  const auto other = OpenGgufModel(folder.Write("m.gguf", bytes));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ((*one)->Digest().size(), 64u);
  EXPECT_NE((*one)->Digest(), (*other)->Digest());
}

INSTANTIATE_TEST_SUITE_P(Families, GgufModel,
                         testing::Values("olmoe", "qwen2_moe", "qwen2_moe_fused", "qwen3_moe", "deepseek",
                                         "deepseek_v2", "deepseek_v2_groups", "mixtral", "mixtral_llama3",
                                         "granite_moe"));

// A golden file with other tensors: change(name, view) gives the type's number in the file and the bytes.
GgufContent Rewritten(
    const std::string& family,
    const std::function<std::pair<uint32_t, std::string>(const std::string&, const TensorView&)>& change) {
  const auto file = GgufFile::Open(GoldenPath(family + ".gguf"));
  EXPECT_TRUE(file.ok()) << file.status();
  GgufContent content;
  const auto text = [](absl::Span<const std::byte> bytes) {
    return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  };
  for (const auto& [key, value] : (*file)->metadata()) {
    const std::string array = GgufBytes(static_cast<uint32_t>(value.type)) + GgufBytes(value.count);
    content.Add(key, value.is_array ? GgufType::kArray : value.type, (value.is_array ? array : "") + text(value.bytes));
  }
  for (const auto& [name, view] : (*file)->tensors()) {
    const auto [type, bytes] = change(name, view);
    content.tensors.push_back({name, {view.shape.rbegin(), view.shape.rend()}, type, content.data.size()});
    content.data += bytes;
    content.data.resize((content.data.size() + content.alignment - 1) / content.alignment * content.alignment);
  }
  return content;
}

TEST(GgufModels, OfMixedTypesAreThoseOfTheirValues) {
  struct Kind {
    DType type;
    uint32_t number;
    std::vector<size_t> halves;  // Where a block's scales stand.
  };
  const Kind kinds[] = {{DType::kQ4_0, 2, {0}},
                        {DType::kQ4_1, 3, {0, 2}},
                        {DType::kQ5_0, 6, {0}},
                        {DType::kQ5_1, 7, {0, 2}},
                        {DType::kQ8_0, 8, {0}}};
  for (const std::string family : {"olmoe", "deepseek_v2", "mixtral"}) {
    std::map<std::string, std::pair<DType, std::string>> blocks;
    const auto quantized = [&](const std::string& name, const TensorView& view) -> std::pair<uint32_t, std::string> {
      if (view.shape.size() < 2 || view.shape.back() % 32 != 0) {
        const uint32_t number = view.dtype == DType::kF32 ? 0 : 30;
        return {number, std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size())};
      }
      const Kind& kind = kinds[blocks.size() % std::size(kinds)];
      std::string bytes;
      for (int64_t i = 0; i < view.elements() / 32; ++i) {
        std::string block;
        for (int64_t j = 0; j < DTypeBytes(kind.type); ++j) {
          block.push_back(static_cast<char>((Crc32(name) + static_cast<uint32_t>(i * 40 + j) * 2654435761u) >> 24));
        }
        for (const size_t at : kind.halves) block.replace(at, 2, "\x66\x2A");  // 0.05
        bytes += block;
      }
      blocks[name] = {kind.type, bytes};
      return {kind.number, bytes};
    };
    const auto widened = [&](const std::string& name, const TensorView& view) -> std::pair<uint32_t, std::string> {
      const auto found = blocks.find(name);
      const DType type = found == blocks.end() ? view.dtype : found->second.first;
      const std::byte* const from =
          found == blocks.end() ? view.bytes.data() : reinterpret_cast<const std::byte*>(found->second.second.data());
      std::vector<float> values(static_cast<size_t>(view.elements()));
      ToFloat32(type, from, view.elements(), values.data());
      return {0, std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float))};
    };
    TestFolder folder;
    ModelConfig config, wide_config;
    const auto mixed = Packed(folder.Write("mixed.gguf", Rewritten(family, quantized).Bytes()), &config);
    const auto wide = Packed(folder.Write("wide.gguf", Rewritten(family, widened).Bytes()), &wide_config);
    ASSERT_TRUE(mixed.ok() && wide.ok()) << family << ": " << mixed.status() << wide.status();
    EXPECT_GE(blocks.size(), std::size(kinds)) << family;
    EXPECT_TRUE(*mixed == *wide) << family;
    EXPECT_EQ(Described(config), Described(wide_config));
  }
}

TEST(GgufModels, HaveNoVectorsOfBlocks) {
  const auto vector_of_blocks = [](const std::string& name,
                                   const TensorView& view) -> std::pair<uint32_t, std::string> {
    if (name == "output_norm.weight") return {8, std::string(34, '\0')};
    const uint32_t number = view.dtype == DType::kF32 ? 0 : 30;
    return {number, std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size())};
  };
  TestFolder folder;
  const absl::Status status = CheckFolder(folder.Write("m.gguf", Rewritten("olmoe", vector_of_blocks).Bytes()));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("tensor \"output_norm.weight\": a vector of type Q8_0 is not taken"));
}

// The error of a golden file in which one text, wherever it stands, is another of the same length.
absl::Status ErrorWith(const std::string& family, const std::string& from, const std::string& to) {
  std::string bytes = ReadAll(GoldenPath(family + ".gguf"));
  EXPECT_EQ(from.size(), to.size());
  int changed = 0;
  for (size_t at = bytes.find(from); at != bytes.npos; at = bytes.find(from, at)) {
    bytes.replace(at, to.size(), to);
    ++changed;
  }
  EXPECT_GT(changed, 0);
  TestFolder folder;
  const absl::Status status = CheckFolder(folder.Write("m.gguf", bytes));
  EXPECT_FALSE(status.ok());
  return status;
}

TEST(GgufFamilies, OfAnotherArchitectureAreRefusedByName) {
  const absl::Status status = ErrorWith("olmoe", "olmoe", "olmo9");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("m.gguf: general.architecture: \"olmo9\" is not supported"));
}

TEST(GgufKeys, ThatNobodyReadsAreRefusedByName) {
  const absl::Status status = ErrorWith("olmoe", "olmoe.rope.freq_base", "olmoe.rope.freq_case");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("key \"olmoe.rope.freq_case\" is not supported"));
}

TEST(GgufKeys, ThatAreMissingAreNamed) {
  for (const char* key : {"block_count", "context_length", "embedding_length", "feed_forward_length", "expert_count",
                          "expert_used_count", "attention.head_count", "attention.layer_norm_rms_epsilon",
                          "attention.kv_lora_rank", "attention.key_length_mla", "rope.dimension_count"}) {
    const std::string name = absl::StrCat("deepseek2.", key);
    std::string other = name;
    other.back() = '9';
    const absl::Status status = ErrorWith("deepseek_v2", name, other);
    EXPECT_THAT(std::string(status.message()), HasSubstr("deepseek2.")) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("m.gguf: key ")) << status;
  }
}

TEST(GgufTensors, ThatNoFamilyHasAreRefusedByName) {
  const absl::Status status = ErrorWith("olmoe", "blk.1.attn_norm.weight", "blk.1.attn_form.weight");
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("tensor \"blk.1.attn_form.weight\" is not supported"));
}

TEST(GgufTensors, ThatAreMissingOrOfAnotherFamilyAreNamed) {
  EXPECT_THAT(std::string(ErrorWith("olmoe", "blk.1.attn_k_norm.weight", "blk.3.attn_k_norm.weight").message()),
              HasSubstr("\"model.layers.1.self_attn.k_norm.weight\" is missing"));
  EXPECT_THAT(std::string(ErrorWith("mixtral", "blk.1.ffn_norm.weight", "blk.1.ffn_gate.weight").message()),
              HasSubstr("is missing"));
}

// The error of a golden file with one tensor's bytes, or its first dimension, changed.
absl::Status ErrorWithTensor(const std::string& family, const std::string& tensor,
                             const std::function<void(GgufContent::Tensor&, char* bytes)>& change) {
  const auto kept = [](const std::string&, const TensorView& view) -> std::pair<uint32_t, std::string> {
    return {view.dtype == DType::kF32 ? 0 : 30,
            std::string(reinterpret_cast<const char*>(view.bytes.data()), view.bytes.size())};
  };
  GgufContent content = Rewritten(family, kept);
  for (GgufContent::Tensor& one : content.tensors) {
    if (one.name == tensor) change(one, content.data.data() + one.offset);
  }
  TestFolder folder;
  return CheckFolder(folder.Write("m.gguf", content.Bytes()));
}

TEST(GgufTensors, OfDivisorsThatAreNotThoseOfLlama3AreRefused) {
  const auto set = [](size_t index, float value) {
    return ErrorWithTensor("mixtral_llama3", "rope_freqs.weight", [=](GgufContent::Tensor&, char* bytes) {
      std::memcpy(bytes + index * sizeof value, &value, sizeof value);
    });
  };
  EXPECT_TRUE(set(0, 1).ok()) << set(0, 1);  // As it was.
  for (const auto& [index, value] : {std::pair<size_t, float>{0, 2}, {2, 4}, {3, 0.5f}, {3, NAN}, {3, INFINITY}}) {
    const absl::Status status = set(index, value);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << index << " " << value;
    EXPECT_THAT(std::string(status.message()), HasSubstr("m.gguf: tensor \"rope_freqs.weight\": other divisors"));
  }
}

TEST(GgufTensors, OfDivisorsBelongToLlamaAlone) {
  const absl::Status status = ErrorWithTensor(
      "olmoe", "output_norm.weight", [](GgufContent::Tensor& tensor, char*) { tensor.name = "rope_freqs.weight"; });
  EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(status.message()), HasSubstr("\"rope_freqs.weight\" is not supported"));
}

TEST(GgufTensors, FusedOfAnotherNumberOfRowsAreRefused) {
  const absl::Status status =
      ErrorWithTensor("mixtral_llama3", "blk.1.attn_qkv.weight", [](GgufContent::Tensor& tensor, char*) {
        std::swap(tensor.dimensions[0], tensor.dimensions[1]);  // [64, 32] to [32, 64]: as many rows as of queries.
      });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              HasSubstr("tensor \"blk.1.attn_qkv.weight\": 32 rows are none of 32 of queries"));
}

}  // namespace
}  // namespace c3po
