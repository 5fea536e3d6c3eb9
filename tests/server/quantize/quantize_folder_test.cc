// What `c3pod quantize` writes: names, configuration, other files, shards; and what it refuses without a trace.

#include "server/quantize/quantize_folder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "server/model/config/tensor_plan.h"
#include "server/quantize/quantize_command.h"
#include "server/weights/host_matrix.h"
#include "tests/server/quantize/made_up_folder.h"

namespace c3po {
namespace {

namespace fs = std::filesystem;

using Json = nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

nlohmann::json JsonOf(const std::string& path) { return nlohmann::json::parse(std::ifstream(path)); }

std::vector<std::string> NamesIn(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  return names;
}

class WrittenFolder : public testing::Test {
 protected:
  // Nothing is left where the folder was to be.
  void ExpectRefused(absl::StatusCode code, const std::string& what) {
    EXPECT_EQ(made_.result().status().code(), code);
    EXPECT_THAT(std::string(made_.result().status().message()), HasSubstr(what));
    EXPECT_THAT(NamesIn(fs::path(made_.to()).parent_path().string()), IsEmpty());
  }

  QuantizedFolder made_;
  const MadeUpModel olmoe_ = {"olmoe_tiny", R"({"intermediate_size": 48})"};
};

TEST_F(WrittenFolder, NamesItsFormatsAsTransformersAndVllmReadThem) {
  olmoe_.Write(made_.folder());
  made_.Quantize(WeightFormat::kInt4);
  ASSERT_TRUE(made_.result().ok()) << made_.result().status();
  Json config = JsonOf(made_.to() + "/config.json");
  const Json quantization = config["quantization_config"];
  EXPECT_EQ(quantization["quant_method"], "compressed-tensors");
  EXPECT_EQ(quantization["format"], "pack-quantized");
  EXPECT_EQ(quantization["ignore"], Json({R"(re:.*model\.layers\.\d+\.mlp\.gate$)"}));
  std::map<std::pair<int, int>, Json> targets;
  for (const auto& [name, group] : quantization["config_groups"].items()) {
    const Json& weights = group["weights"];
    EXPECT_EQ(weights["type"], "int");
    EXPECT_EQ(weights["symmetric"], true);
    EXPECT_EQ(weights["strategy"], "group");
    targets[{weights["num_bits"], weights["group_size"]}] = group["targets"];
  }
  EXPECT_EQ(targets.size(), 3u);
  EXPECT_EQ((targets[{4, 32}]), Json({"Linear"}));
  EXPECT_EQ((targets[{8, 32}]),
            Json({R"(re:.*lm_head$)", R"(re:.*model\.layers\.\d+\.self_attn\.k_proj$)",
                  R"(re:.*model\.layers\.\d+\.self_attn\.o_proj$)", R"(re:.*model\.layers\.\d+\.self_attn\.q_proj$)",
                  R"(re:.*model\.layers\.\d+\.self_attn\.v_proj$)"}));
  EXPECT_EQ((targets[{4, 16}]), Json({R"(re:.*model\.layers\.\d+\.mlp\.experts\.\d+\.down_proj$)"}));
  config.erase("quantization_config");
  EXPECT_EQ(config, JsonOf(made_.from() + "/config.json"));

  const auto file = SafetensorsFile::Open(made_.to() + "/model.safetensors");
  ASSERT_TRUE(file.ok()) << file.status();
  const std::string down = "model.layers.1.mlp.experts.2.down_proj.weight";
  const TensorView packed = *(*file)->Find(down + "_packed"), scale = *(*file)->Find(down + "_scale");
  EXPECT_EQ(packed.dtype, DType::kI32);
  EXPECT_THAT(packed.shape, ElementsAre(64, 6));
  EXPECT_EQ(scale.dtype, DType::kBF16);
  EXPECT_THAT(scale.shape, ElementsAre(64, 3));
  EXPECT_EQ((*file)->Find(down + "_shape")->dtype, DType::kI64);
  EXPECT_EQ((*file)->Find("lm_head.weight"), nullptr);
  for (const std::string& name : (*file)->names()) {  // As other readers like them.
    const TensorView& view = *(*file)->Find(name);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(view.bytes.data()) % static_cast<uintptr_t>(DTypeBytes(view.dtype)), 0u);
  }
  EXPECT_EQ(made_.result()->bytes_from, static_cast<int64_t>([&] {
              int64_t bytes = 0;
              const auto checkpoint = OpenCheckpoint(made_.from());
              for (const std::string& name : (*checkpoint)->names()) bytes += (*checkpoint)->Find(name)->bytes.size();
              return bytes;
            }()));
  EXPECT_LT(made_.result()->bytes_to, made_.result()->bytes_from);
}

TEST_F(WrittenFolder, LeavesATiedEmbeddingAsItIsAndHasExpertsOneByOne) {
  MadeUpModel{"mixtral_tiny", R"({"intermediate_size": 32})", /*together=*/true}.Write(made_.folder());
  made_.Quantize(WeightFormat::kInt4);
  ASSERT_TRUE(made_.result().ok()) << made_.result().status();
  const Json quantization = JsonOf(made_.to() + "/config.json")["quantization_config"];
  EXPECT_EQ(quantization["ignore"], Json({R"(re:.*lm_head$)", R"(re:.*model\.layers\.\d+\.block_sparse_moe\.gate$)"}));
  const auto checkpoint = OpenCheckpoint(made_.to());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->Find("model.embed_tokens.weight")->dtype, DType::kBF16);
  EXPECT_EQ((*checkpoint)->Find("model.layers.0.block_sparse_moe.experts.3.w2.weight")->dtype, DType::kInt4);
  EXPECT_EQ((*checkpoint)->Find("model.layers.0.block_sparse_moe.gate.weight")->dtype, DType::kBF16);
  EXPECT_NE((*checkpoint)->Digest(), (*OpenCheckpoint(made_.from()))->Digest());
}

TEST_F(WrittenFolder, HasTheOtherFilesOfItsOriginalAndNoOtherWeights) {
  olmoe_.Write(made_.folder());
  const TestFolder& from = made_.folder();
  from.Write("tokenizer.json", "{\"a\": 1}");
  from.Write("generation_config.json", "{}");
  from.Write("pytorch_model.bin", "weights");
  from.Write("model.gguf", "weights");
  from.Write(".hidden", "x");
  fs::create_directories(from.path() + "/additional_chat_templates");
  from.Write("additional_chat_templates/tool_use.jinja", "tools");
  from.Write(".blob", "linked");
  fs::create_symlink(".blob", from.path() + "/chat_template.jinja");  // As in the Hugging Face cache.
  made_.Quantize(WeightFormat::kInt8);
  ASSERT_TRUE(made_.result().ok()) << made_.result().status();
  EXPECT_THAT(NamesIn(made_.to()),
              UnorderedElementsAre("config.json", "model.safetensors", "tokenizer.json", "generation_config.json",
                                   "additional_chat_templates", "chat_template.jinja"));
  EXPECT_EQ(JsonOf(made_.to() + "/tokenizer.json"), Json({{"a", 1}}));
  EXPECT_TRUE(fs::is_regular_file(fs::symlink_status(made_.to() + "/chat_template.jinja")));
  EXPECT_EQ(fs::file_size(made_.to() + "/additional_chat_templates/tool_use.jinja"), 5u);
}

TEST_F(WrittenFolder, IsCutIntoShardsThatAnIndexLists) {
  olmoe_.Write(made_.folder());
  made_.Quantize(WeightFormat::kInt4);
  ASSERT_TRUE(made_.result().ok()) << made_.result().status();
  const std::string whole = (*OpenCheckpoint(made_.to()))->Digest();
  fs::remove_all(made_.to());
  int told = 0;
  made_.Quantize(WeightFormat::kInt4, [&](QuantizeOptions& options) {
    options.shard_bytes_max = made_.result()->bytes_to / 3;
    options.progress = [&](int done, int) { told = done; };
  });
  ASSERT_TRUE(made_.result().ok()) << made_.result().status();
  EXPECT_EQ(told, made_.result()->tensors);
  const std::vector<std::string> names = NamesIn(made_.to());
  EXPECT_THAT(names, testing::Contains("model-00001-of-00004.safetensors"));
  for (const std::string& name : names) {
    if (name.find("-of-") == name.npos) continue;
    EXPECT_LT(fs::file_size(made_.to() + "/" + name), made_.result()->bytes_to / 3 + 100'000u);  // And its header.
  }
  EXPECT_EQ(JsonOf(made_.to() + "/model.safetensors.index.json")["metadata"]["total_size"], made_.result()->bytes_to);
  EXPECT_EQ((*OpenCheckpoint(made_.to()))->Digest(), whole);
}

TEST_F(WrittenFolder, IsNeverWrittenOverAnything) {
  olmoe_.Write(made_.folder());
  fs::create_directories(made_.to());
  made_.Quantize(WeightFormat::kInt4);
  EXPECT_EQ(made_.result().status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(NamesIn(made_.to()), IsEmpty());
  fs::remove_all(made_.to());
  // Something takes its place meanwhile.
  made_.Quantize(WeightFormat::kInt4, [&](QuantizeOptions& options) {
    options.progress = [&](int, int) { fs::create_directories(made_.to()); };
  });
  EXPECT_EQ(made_.result().status().code(), absl::StatusCode::kAlreadyExists);
  EXPECT_THAT(NamesIn(fs::path(made_.to()).parent_path().string()), ElementsAre("out"));
}

TEST_F(WrittenFolder, IsNotThereWhereWritingItEnded) {
  olmoe_.Write(made_.folder());
  int asked = 0;
  made_.Quantize(WeightFormat::kInt4,
                 [&](QuantizeOptions& options) { options.stopped = [&] { return ++asked > 20; }; });
  ExpectRefused(absl::StatusCode::kCancelled, "stopped");
  made_.Quantize(WeightFormat::kInt4, [](QuantizeOptions& options) { options.to += "/no/folder"; });
  ExpectRefused(absl::StatusCode::kNotFound, "/no/folder");
}

TEST_F(WrittenFolder, IsNotThereWhereTheDiskHasNoRoom) {
  olmoe_.Write(made_.folder());
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit small = before;
  small.rlim_cur = 20'000;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  made_.Quantize(WeightFormat::kInt4);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  ExpectRefused(absl::StatusCode::kResourceExhausted, "model.safetensors: no room for");
}

TEST_F(WrittenFolder, RefusesWhatItCannotQuantizeByName) {
  made_.From(std::string(C3PO_TESTDATA_DIR) + "/gguf/olmoe.gguf");
  made_.Quantize(WeightFormat::kInt4);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "olmoe.gguf: a GGUF file");
  made_.From(made_.folder().path());
  made_.Quantize(WeightFormat::kInt4);
  ExpectRefused(absl::StatusCode::kNotFound, "config.json");
  olmoe_.Write(made_.folder());
  ASSERT_EQ(mkfifo((made_.from() + "/pipe").c_str(), 0600), 0);
  made_.Quantize(WeightFormat::kInt4);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "/pipe: is a FIFO");
  fs::remove(made_.from() + "/pipe");
  fs::create_directory_symlink(".", made_.from() + "/itself");
  made_.Quantize(WeightFormat::kInt4);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "nests too deeply");
}

TEST_F(WrittenFolder, RefusesAWeightThatIsNoNumberAndAFolderThatIsQuantized) {
  olmoe_.Write(made_.folder());
  const std::string name = "model.layers.2.self_attn.o_proj.weight", path = made_.from() + "/model.safetensors";
  std::string whole(std::istreambuf_iterator<char>(std::ifstream(path, std::ios::binary).rdbuf()), {});
  uint64_t header;
  std::memcpy(&header, whole.data(), sizeof(header));
  const size_t begin = Json::parse(whole.substr(8, header))[name]["data_offsets"][0];
  std::string damaged = whole;
  damaged.replace(8 + header + begin + 20, 2, "\xC0\x7F");  // NaN
  made_.folder().Write("model.safetensors", damaged);
  made_.Quantize(WeightFormat::kInt4);
  ExpectRefused(absl::StatusCode::kInvalidArgument, name);
  made_.folder().Write("model.safetensors", whole);
  made_.Quantize(WeightFormat::kInt4);
  ASSERT_TRUE(made_.result().ok()) << made_.result().status();
  QuantizeOptions again;
  again.from = made_.to();
  again.to = made_.to() + "2";
  EXPECT_THAT(std::string(QuantizeFolder(again).status().message()), HasSubstr("quantized already"));
}

// sum_k h_k (w - s q)^2 over all rows, in double.
double ErrorOf(const HostMatrix& quantized, const HostMatrix& stored, const std::vector<float>& squares) {
  double error = 0;
  std::vector<float> got(static_cast<size_t>(stored.columns)), wanted = got;
  for (int64_t r = 0; r < stored.rows; ++r) {
    RowToFloat32(quantized, r, got.data());
    RowToFloat32(stored, r, wanted.data());
    for (size_t k = 0; k < got.size(); ++k) error += squares[k] * std::pow(double{got[k]} - wanted[k], 2);
  }
  return error;
}

TEST_F(WrittenFolder, TakesWhatItsColumnsWeigh) {
  olmoe_.Write(made_.folder());
  const std::string name = "model.layers.1.self_attn.q_proj.weight";
  std::vector<float> squares(64);
  for (size_t k = 0; k < squares.size(); ++k) squares[k] = k % 7 == 0 ? 400 : 0.5F;
  const auto matrix = [&](const std::string& folder, const std::function<double(const HostMatrix&)>& read) {
    const auto checkpoint = OpenCheckpoint(folder);
    return read(HostMatrix::Of(*(*checkpoint)->Find(name)));
  };
  const auto error = [&] {
    return matrix(made_.from(), [&](const HostMatrix& stored) {
      return matrix(made_.to(), [&](const HostMatrix& quantized) { return ErrorOf(quantized, stored, squares); });
    });
  };
  made_.Quantize(WeightFormat::kInt4);
  ASSERT_TRUE(made_.result().ok()) << made_.result().status();
  const std::string plain = (*OpenCheckpoint(made_.to()))->Digest();
  const double before = error();
  fs::remove_all(made_.to());
  std::vector<std::string> asked;
  made_.Quantize(WeightFormat::kInt4, [&](QuantizeOptions& options) {
    options.columns = [&](absl::string_view tensor) {
      asked.emplace_back(tensor);
      return tensor == name ? absl::MakeConstSpan(squares) : absl::Span<const float>();
    };
  });
  ASSERT_TRUE(made_.result().ok()) << made_.result().status();
  EXPECT_LT(error(), 0.9 * before);
  EXPECT_EQ(static_cast<int64_t>(asked.size()), made_.result()->quantized);
  fs::remove_all(made_.to());
  // Columns that nothing meets: as without.
  made_.Quantize(WeightFormat::kInt4, [&](QuantizeOptions& options) {
    options.columns = [zeros = std::vector<float>(64)](absl::string_view tensor) {
      return tensor == "model.layers.1.self_attn.q_proj.weight" ? absl::MakeConstSpan(zeros)
                                                                : absl::Span<const float>();
    };
  });
  EXPECT_EQ((*OpenCheckpoint(made_.to()))->Digest(), plain);
  fs::remove_all(made_.to());
  for (const std::vector<float>& wrong : {std::vector<float>(63, 1.0F), std::vector<float>(64, -1.0F)}) {
    made_.Quantize(WeightFormat::kInt4, [&](QuantizeOptions& options) {
      options.columns = [&](absl::string_view) { return absl::MakeConstSpan(wrong); };
    });
    ExpectRefused(absl::StatusCode::kInvalidArgument, "columns");
  }
}

TEST(QuantizeCommand, ReadsItsWords) {
  const auto parse = [](std::vector<const char*> words) {
    words.insert(words.begin(), "quantize");
    return ParseQuantizeCommand(static_cast<int>(words.size()), words.data());
  };
  const auto command = parse({"in", "--weights", "int8", "out", "--revision", "v1", "--json"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->from, "in");
  EXPECT_EQ(command->to, "out");
  EXPECT_EQ(command->revision, "v1");
  EXPECT_EQ(command->weights, WeightFormat::kInt8);
  EXPECT_TRUE(command->json);
  EXPECT_EQ(parse({"in", "out"})->weights, WeightFormat::kInt4);
  for (const auto& [words, what] :
       std::vector<std::pair<std::vector<const char*>, const char*>>{{{"in"}, "OUT"},
                                                                     {{"in", "out", "third"}, "OUT"},
                                                                     {{"in", "out", "--weights"}, "--weights"},
                                                                     {{"in", "out", "--weights", "int3"}, "int3"},
                                                                     {{"in", "out", "--what"}, "--what"}}) {
    EXPECT_THAT(std::string(parse(words).status().message()), HasSubstr(what));
  }
}

}  // namespace
}  // namespace c3po
