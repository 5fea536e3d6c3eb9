// A quantized folder with a byte changed or a part missing: the same weights, or a message that names file or tensor.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <random>
#include <stdexcept>

#include "absl/strings/ascii.h"
#include "server/compute/cpu/cpu_weights.h"
#include "server/model/config/tensor_plan.h"
#include "tests/server/quantize/made_up_folder.h"

namespace c3po {
namespace {

using testing::AnyOf;
using testing::HasSubstr;

constexpr uint32_t kSeed = 20261130;
constexpr int kMutations = 10'000;

nlohmann::json JsonOf(const std::string& path) { return nlohmann::json::parse(std::ifstream(path)); }

std::string ReadAll(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// As loading does: opens, checks, and packs what is stored.
absl::StatusOr<std::string> Load(const std::string& folder) {
  auto opened = OpenCheckpoint(folder);
  if (!opened.ok()) return opened.status();
  const std::shared_ptr<const Checkpoint> checkpoint = *std::move(opened);
  const auto config = ReadConfig(*checkpoint);
  if (!config.ok()) return config.status();
  const std::string digest = checkpoint->Digest();
  const auto weights = ViewWeights(checkpoint, *config);
  if (!weights.ok()) return weights.status();
  try {
    cpu::PackWeights(*config, *weights, ElementType::kBfloat16, cpu::WeightLayout::kPanels, nullptr,
                     WeightFormat::kInt4, /*as_stored=*/true);
  } catch (const std::invalid_argument& error) {
    return absl::InvalidArgumentError(error.what());
  }
  return digest;
}

class DamagedQuantizedFolder : public testing::Test {
 protected:
  void SetUp() override {
    MadeUpModel{"olmoe_tiny", R"({"intermediate_size": 48, "num_hidden_layers": 1})"}.Write(made_.folder());
    made_.Quantize(WeightFormat::kInt4);
    ASSERT_TRUE(made_.result().ok()) << made_.result().status();
    path_ = made_.to() + "/model.safetensors";
    text_ = ReadAll(path_);
    std::memcpy(&header_, text_.data(), sizeof(header_));
    fields_ = nlohmann::json::parse(text_.substr(8, header_));
  }
  // Where a tensor's data begin in the file.
  size_t DataOf(const std::string& name) const {
    return 8 + header_ + fields_.at(name)["data_offsets"][0].get<size_t>();
  }
  // Loads the file with some bytes replaced.
  absl::Status LoadWith(size_t at, const std::string& bytes) {
    std::string changed = text_;
    Rewrite(changed.replace(at, bytes.size(), bytes));
    return Load(made_.to()).status();
  }
  // With the header changed, and the data as they are.
  absl::Status LoadWithFields(const nlohmann::json& fields, const std::string& data) {
    Rewrite(SafetensorsText(fields.dump(), data));
    return Load(made_.to()).status();
  }
  void Rewrite(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }

  QuantizedFolder made_;
  std::string path_, text_;
  uint64_t header_ = 0;
  nlohmann::json fields_;
  const std::string name_ = "model.layers.0.self_attn.q_proj.weight";
};

TEST_F(DamagedQuantizedFolder, LoadsTheSameOrIsRefusedAfterAnyChangeOfItsHeader) {
  const auto original = Load(made_.to());
  ASSERT_TRUE(original.ok()) << original.status();
  std::fstream file(path_, std::ios::binary | std::ios::in | std::ios::out);
  const auto put = [&file](size_t at, char byte) {
    file.seekp(static_cast<std::streamoff>(at));
    file.put(byte).flush();
  };
  std::mt19937 random(kSeed);
  int refused = 0;
  for (int round = 0; round < kMutations; ++round) {
    const size_t at = random() % (8 + header_);
    put(at, static_cast<char>(text_[at] + 1 + random() % 255));
    const auto loaded = Load(made_.to());
    put(at, text_[at]);
    if (loaded.ok()) {
      ASSERT_EQ(*loaded, *original) << "round " << round << ", byte " << at;
      continue;
    }
    ++refused;
    const std::string message(loaded.status().message());
    ASSERT_THAT(message, AnyOf(HasSubstr("model.safetensors"), HasSubstr("tensor "))) << "round " << round;
    for (const char c : message) ASSERT_TRUE(absl::ascii_isprint(c)) << "round " << round << ": " << message;
  }
  EXPECT_GT(refused, kMutations / 3);
}

TEST_F(DamagedQuantizedFolder, IsRefusedByTheTensorWhoseShapeIsAnother) {
  const std::string big(1, '\x7F');
  for (const size_t byte : {size_t{0}, size_t{3}, size_t{7}, size_t{8}, size_t{12}, size_t{15}}) {
    EXPECT_THAT(std::string(LoadWith(DataOf(name_ + "_shape") + byte, big).message()), HasSubstr(name_)) << byte;
  }
  EXPECT_THAT(std::string(LoadWith(DataOf(name_ + "_shape") + 8, std::string(8, '\0')).message()), HasSubstr(name_));
}

TEST_F(DamagedQuantizedFolder, IsRefusedByTheTensorWhoseScaleIsNoNumberOrTooLarge) {
  for (const char* const bits : {"\xC0\x7F", "\x80\x7F", "\x80\xFF", "\x7F\x7F"}) {  // NaN, both infinities, 3.4e38
    const absl::Status status = LoadWith(DataOf(name_ + "_scale") + 6, bits);
    EXPECT_THAT(std::string(status.message()), HasSubstr(name_));
    EXPECT_THAT(std::string(status.message()), HasSubstr("scale of row 1, column 32"));
  }
  EXPECT_TRUE(LoadWith(DataOf(name_ + "_scale") + 6, std::string("\x00\x00", 2)).ok());
}

// Two scales of 16 columns that lie in one group of 32.
TEST_F(DamagedQuantizedFolder, IsRefusedWhereScalesOfHalfAGroupDiffer) {
  const std::string name = "model.layers.0.mlp.experts.1.down_proj.weight";
  const std::string other = text_[DataOf(name + "_scale") + 2] == '\x01' ? "\x02" : "\x01";
  const absl::Status status = LoadWith(DataOf(name + "_scale") + 2, other);
  EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  EXPECT_THAT(std::string(status.message()), HasSubstr("differ"));
  EXPECT_TRUE(LoadWith(DataOf(name + "_scale") + 4, other).ok());  // The third one stands alone.
}

// Each part missing, renamed, or of another type.
TEST_F(DamagedQuantizedFolder, IsRefusedByThePartThatIsMissingOrOfAnotherType) {
  const std::string data = text_.substr(8 + header_);
  for (const char* part : {"_packed", "_scale", "_shape"}) {
    nlohmann::json fields = fields_;
    fields[name_ + "_else"] = fields.at(name_ + part);
    fields.erase(name_ + part);
    EXPECT_THAT(std::string(LoadWithFields(fields, data).message()), HasSubstr(name_)) << part;
    fields = fields_;
    const std::string type = fields[name_ + part]["dtype"];
    fields[name_ + part]["dtype"] = type == "BF16" ? "F16" : type == "I32" ? "U32" : "U64";
    EXPECT_THAT(std::string(LoadWithFields(fields, data).message()), HasSubstr(name_ + part)) << part;
  }
  nlohmann::json fields = fields_;
  fields[name_] = {{"dtype", "BF16"}, {"shape", {0}}, {"data_offsets", {data.size(), data.size()}}};
  EXPECT_THAT(std::string(LoadWithFields(fields, data).message()), HasSubstr("beside weight_packed"));
}

TEST_F(DamagedQuantizedFolder, IsRefusedWhereItsConfigurationNamesOtherFormats) {
  nlohmann::json config = JsonOf(made_.to() + "/config.json");
  const auto load = [&] {
    std::ofstream(made_.to() + "/config.json") << config.dump();
    return std::string(Load(made_.to()).status().message());
  };
  nlohmann::json& quantization = config["quantization_config"];
  const nlohmann::json groups = quantization["config_groups"];
  for (const auto& [name, group] : groups.items()) quantization["config_groups"][name]["weights"]["group_size"] = 64;
  EXPECT_THAT(load(), HasSubstr("is not of quantization_config: "));
  quantization["config_groups"] = groups;
  EXPECT_EQ(load(), "");
  config.erase("quantization_config");
  EXPECT_THAT(load(), HasSubstr("is missing"));
}

}  // namespace
}  // namespace c3po
