// A tiny model beside its quantized forms, in memory and as a folder, with and without a calibration.

#include "server/quantize/model_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>
#include <random>

#include "server/quantize/calibration.h"
#include "server/quantize/quantize_command.h"
#include "server/text/tokenizer.h"
#include "tests/server/quantize/made_up_folder.h"

namespace c3po {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

std::string WriteText(const std::string& name, int words) {
  const std::string path = testing::TempDir() + "model_check_" + name;
  std::ofstream file(path, std::ios::binary);
  std::mt19937 random(5);
  for (int i = 0; i < words; ++i) {
    for (int letters = 1 + static_cast<int>(random() % 6); letters > 0; --letters) file << "etaoinshr"[random() % 9];
    file << ' ';
  }
  return path;
}

class CheckedModel : public testing::Test {
 protected:
  CheckedModel() {
    olmoe_.Write(made_.folder());
    for (const std::string name : {"/tokenizer.json", "/tokenizer_config.json"}) {
      std::filesystem::copy_file(std::string(C3PO_TESTDATA_DIR) + "/model/olmoe_tiny" + name, made_.from() + name,
                                 std::filesystem::copy_options::overwrite_existing);
    }
    text_ = WriteText("text.txt", 300);
  }

  absl::StatusOr<ModelCheck> Check(const std::string& weights, const std::string& quantized = "",
                                   std::shared_ptr<const cpu::ActivationSquares> columns = nullptr) {
    return CheckModel({made_.from(), quantized, weights, std::move(columns), text_, 128});
  }
  absl::StatusOr<Calibration> CalibrateIt(int64_t tokens_max = 8192) {
    const auto tokenizer = Tokenizer::LoadFolder(made_.from());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto text = ReadText(text_, **tokenizer);
    EXPECT_TRUE(text.ok()) << text.status();
    return Calibrate(made_.from(), *text, tokens_max);
  }

  QuantizedFolder made_;
  const MadeUpModel olmoe_ = {"olmoe_tiny", R"({"intermediate_size": 48})"};
  std::string text_;
};

TEST_F(CheckedModel, SaysWhatItComparedAndWhatThatCosts) {
  const auto int8 = Check("int8"), int4 = Check("int4");
  ASSERT_TRUE(int8.ok()) << int8.status();
  ASSERT_TRUE(int4.ok()) << int4.status();
  EXPECT_EQ(int4->stored, "bfloat16");
  EXPECT_EQ(int4->quantized, "int4");
  EXPECT_GT(int8->cost.mean_kl, 0);
  EXPECT_GT(int4->cost.mean_kl, int8->cost.mean_kl);
  EXPECT_EQ(int4->cost.stored_perplexity, int8->cost.stored_perplexity);
  const nlohmann::json json = nlohmann::json::parse(CheckJson(*int4));
  EXPECT_EQ(json["mean_kl"], int4->cost.mean_kl);
  EXPECT_EQ(json["same_greedy"], int4->cost.same_greedy);
  EXPECT_EQ(json["quantized_arithmetic"], int4->quantized_arithmetic);
  const std::string table = CheckText(*int4);
  for (const std::string part :
       {"perplexity", "mean KL", "99th percentile", "same greedy token", "int4", "windows of 128"}) {
    EXPECT_THAT(table, HasSubstr(part));
  }
}

TEST_F(CheckedModel, OfAFolderIsThatOfTheSameWeightsInMemory) {
  const auto calibration = CalibrateIt();
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  const auto weighting = WeightingOf(made_.from(), calibration->squares);
  ASSERT_TRUE(weighting.ok()) << weighting.status();
  QuantizeOptions options;
  options.from = made_.from();
  options.to = made_.to();
  options.columns = *weighting;
  const auto written = QuantizeFolder(options);
  ASSERT_TRUE(written.ok()) << written.status();
  const auto plain = Check("int4"), weighted = Check("int4", "", calibration->squares), folder = Check("", made_.to());
  ASSERT_TRUE(plain.ok()) << plain.status();
  ASSERT_TRUE(weighted.ok()) << weighted.status();
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ(CheckJson(*folder), CheckJson(*weighted));
  // Which is smaller says nothing here: a tiny random model's KL is that of the few tokens that route otherwise.
  EXPECT_NE(weighted->cost.mean_kl, plain->cost.mean_kl);
}

TEST_F(CheckedModel, OfAFolderThatIsQuantizedAlreadyIsRefused) {
  QuantizeOptions options;
  options.from = made_.from();
  options.to = made_.to();
  ASSERT_TRUE(QuantizeFolder(options).ok());
  const auto check = CheckModel({made_.to(), "", "int4", nullptr, text_, 128});
  EXPECT_EQ(check.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(check.status().message()), HasSubstr("quantized already"));
}

TEST_F(CheckedModel, NamesATextThatIsTooShort) {
  text_ = WriteText("short.txt", 3);
  const auto check = Check("int4");
  EXPECT_EQ(check.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(check.status().message()), HasSubstr("short.txt: the text has"));
}

TEST_F(CheckedModel, IsCalibratedByTensorsNames) {
  const auto calibration = CalibrateIt(100);
  ASSERT_TRUE(calibration.ok()) << calibration.status();
  EXPECT_EQ(calibration->tokens, 100);
  const cpu::ActivationSquares::Reach reach = calibration->squares->reach();
  EXPECT_GT(reach.units, 2 * 2 * 16);
  EXPECT_LT(reach.unreached, reach.units / 2);
  const auto weighting = WeightingOf(made_.from(), calibration->squares);
  ASSERT_TRUE(weighting.ok()) << weighting.status();
  const auto sum = [&](const std::string& name, size_t columns) {
    const absl::Span<const float> squares = (*weighting)(name);
    EXPECT_EQ(squares.size(), columns) << name;
    return std::accumulate(squares.begin(), squares.end(), 0.0);
  };
  const std::string layer = "model.layers.1.";
  const double attention = sum(layer + "self_attn.q_proj.weight", 64);
  EXPECT_GT(attention, 0);
  EXPECT_EQ(attention, sum(layer + "self_attn.v_proj.weight", 64));  // They meet the same activations.
  EXPECT_GT(sum(layer + "self_attn.o_proj.weight", 64), 0);
  EXPECT_GT(sum(layer + "mlp.experts.3.gate_proj.weight", 64), 0);
  EXPECT_EQ(sum(layer + "mlp.experts.3.gate_proj.weight", 64), sum(layer + "mlp.experts.3.up_proj.weight", 64));
  EXPECT_GT(sum(layer + "mlp.experts.3.down_proj.weight", 48), 0);
  EXPECT_GT(sum("lm_head.weight", 64), 0);
  EXPECT_THAT((*weighting)(layer + "mlp.gate.weight"), IsEmpty());
  EXPECT_THAT((*weighting)("nothing"), IsEmpty());
  EXPECT_FALSE(CalibrateIt(0).ok());
}

TEST(QuantizeCommand, TakesTextsAndMayMeasureAlone) {
  const char* both[] = {"quantize", "in", "out", "--calibration", "a.txt", "--check", "b.txt", "--check-window", "256"};
  const auto command = ParseQuantizeCommand(9, both);
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->to, "out");
  EXPECT_EQ(command->calibration, "a.txt");
  EXPECT_EQ(command->check, "b.txt");
  EXPECT_EQ(command->check_window, 256);
  const char* alone[] = {"quantize", "in", "--check", "b.txt"};
  const auto measure = ParseQuantizeCommand(4, alone);
  ASSERT_TRUE(measure.ok()) << measure.status();
  EXPECT_EQ(measure->to, "");
  EXPECT_FALSE(ParseQuantizeCommand(2, alone).ok());
  EXPECT_FALSE(ParseQuantizeCommand(3, alone).ok());
  const char* window[] = {"quantize", "in", "--check", "b.txt", "--check-window", "3"};
  EXPECT_FALSE(ParseQuantizeCommand(6, window).ok());
}

}  // namespace
}  // namespace c3po
