// KL, perplexity and equal greedy tokens against their definitions in long double; which tokens are scored, and after
// what; tiny models beside themselves and beside their quantized forms.

#include "server/quantize/quantization_cost.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "server/text/tokenizer.h"
#include "tests/server/model/tiny_model.h"
#include "tests/server/partial_model.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;

std::vector<long double> LogSoftmax(absl::Span<const float> logits) {
  const long double largest = *std::max_element(logits.begin(), logits.end());
  long double total = 0;
  for (const float logit : logits) total += std::exp(logit - largest);
  std::vector<long double> logs;
  for (const float logit : logits) logs.push_back(logit - largest - std::log(total));
  return logs;
}

PositionCost OracleOf(absl::Span<const float> stored, absl::Span<const float> quantized, int32_t token) {
  const std::vector<long double> p = LogSoftmax(stored), q = LogSoftmax(quantized);
  PositionCost cost;
  long double kl = 0;
  for (size_t v = 0; v < p.size(); ++v) kl += std::exp(p[v]) * (p[v] - q[v]);
  cost.kl = static_cast<double>(kl);
  cost.stored_loss = static_cast<double>(-p[static_cast<size_t>(token)]);
  cost.quantized_loss = static_cast<double>(-q[static_cast<size_t>(token)]);
  cost.same_greedy = std::max_element(stored.begin(), stored.end()) - stored.begin() ==
                     std::max_element(quantized.begin(), quantized.end()) - quantized.begin();
  return cost;
}

void ExpectCost(const PositionCost& cost, const PositionCost& oracle) {
  EXPECT_NEAR(cost.kl, oracle.kl, 1e-12 + 1e-12 * oracle.kl);
  EXPECT_NEAR(cost.stored_loss, oracle.stored_loss, 1e-12 * (1 + oracle.stored_loss));
  EXPECT_NEAR(cost.quantized_loss, oracle.quantized_loss, 1e-12 * (1 + oracle.quantized_loss));
  EXPECT_EQ(cost.same_greedy, oracle.same_greedy);
}

TEST(CompareLogits, GivesWhatLogSoftmaxInLongDoubleGives) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    const size_t size = 1 + random() % 3000;
    const float spread = std::pow(10.0f, static_cast<float>(random() % 4) - 1);
    const float off = std::pow(10.0f, static_cast<float>(random() % 5) - 4);
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> stored(size), quantized(size);
    for (size_t v = 0; v < size; ++v) {
      stored[v] = spread * normal(random);
      quantized[v] = stored[v] + off * normal(random) + 5;  // A shift of all logits changes nothing.
    }
    const auto token = static_cast<int32_t>(random() % size);
    ExpectCost(CompareLogits(stored, quantized, token), OracleOf(stored, quantized, token));
  }
}

TEST(CompareLogits, OfTheSameLogitsIsExactlyNothing) {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0, 9);
  std::vector<float> logits(49152);
  for (float& logit : logits) logit = normal(random);
  const PositionCost cost = CompareLogits(logits, logits, 5);
  EXPECT_EQ(cost.kl, 0);
  EXPECT_EQ(cost.stored_loss, cost.quantized_loss);
  EXPECT_TRUE(cost.same_greedy);
}

TEST(CompareLogits, TakesTheLowestOfEquallyLikelyTokens) {
  EXPECT_TRUE(CompareLogits({1, 3, 3}, {1, 3, 2}, 0).same_greedy);
  EXPECT_FALSE(CompareLogits({1, 3, 3}, {1, 2, 3}, 0).same_greedy);
}

TEST(Summarize, HasMeansTheStandardErrorAndThePercentile) {
  std::vector<PositionCost> positions;
  for (int i = 200; i >= 1; --i)
    positions.push_back({std::log(8.0), std::log(i % 2 == 0 ? 4.0 : 16.0), 0.01 * i, i > 50});
  const QuantizationCost cost = Summarize(positions, 3);
  EXPECT_EQ(cost.windows, 3);
  EXPECT_EQ(cost.tokens, 200);
  EXPECT_NEAR(cost.stored_perplexity, 8, 1e-12);
  EXPECT_NEAR(cost.quantized_perplexity, 8, 1e-12);  // The geometric mean of 4 and 16.
  EXPECT_NEAR(cost.mean_kl, 1.005, 1e-12);
  // Of 1, ..., n the variance is n (n + 1) / 12.
  EXPECT_NEAR(cost.mean_kl_error, 0.01 * std::sqrt(200.0 * 201 / 12 / 200), 1e-12);
  EXPECT_NEAR(cost.kl_99, 1.98, 1e-12);  // 198 of 200 are not above it.
  EXPECT_NEAR(cost.same_greedy, 0.75, 1e-12);
  EXPECT_NEAR(Summarize(absl::MakeSpan(positions).subspan(0, 1), 1).kl_99, 2, 1e-12);
}

// A model whose logits depend on every token of the sequence so far, in its order.
class HashingModel final : public PartialModel {
 public:
  explicit HashingModel(uint32_t seed) : seed_(seed) {
    shape_.vocabulary_size = 50;
    shape_.context_window = 512;
  }

  // After tokens [0, end) of a sequence.
  std::vector<float> LogitsAfter(absl::Span<const int32_t> tokens) const {
    uint32_t state = seed_;
    for (const int32_t token : tokens) state = state * 1664525u + static_cast<uint32_t>(token) + 1013904223u;
    std::vector<float> logits(50);
    for (float& logit : logits) {
      state = state * 1664525u + 1013904223u;
      logit = static_cast<float>(state >> 8) / (1 << 22);
    }
    return logits;
  }

  absl::Status AllocateKvCache(const KvCacheShape& cache) override {
    slots_.resize(static_cast<size_t>(cache.blocks * cache.block_positions));
    block_positions_ = static_cast<size_t>(cache.block_positions);
    return absl::OkStatus();
  }

  absl::Status Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) override {
    outputs.resize(1);
    const Segment& segment = segments[0];
    outputs[0].row_readouts.resize(segment.row_readouts.size());
    std::vector<int32_t> sequence;
    for (int p = 0; p < segment.start; ++p) sequence.push_back(SlotOf(segment, static_cast<size_t>(p)));
    for (size_t i = 0; i < segment.tokens.size(); ++i) {
      SlotOf(segment, sequence.size()) = segment.tokens[i];
      sequence.push_back(segment.tokens[i]);
      if (i < segment.row_readouts.size()) outputs[0].row_readouts[i].logits = LogitsAfter(sequence);
    }
    read_at_once_ = std::max(read_at_once_, segment.row_readouts.size());
    return absl::OkStatus();
  }

  size_t read_at_once() const { return read_at_once_; }

 private:
  // Its "keys and values" are the tokens themselves.
  int32_t& SlotOf(const Segment& segment, size_t position) {
    const auto block = static_cast<size_t>(segment.kv.blocks[position / block_positions_]);
    return slots_[block * block_positions_ + position % block_positions_];
  }

  const uint32_t seed_;
  size_t block_positions_ = 1, read_at_once_ = 0;
  std::vector<int32_t> slots_;
};

TextTokens SomeTokens(int count, std::optional<int32_t> begin) {
  std::mt19937 random(11);
  TextTokens text;
  for (int i = 0; i < count; ++i) text.tokens.push_back(static_cast<int32_t>(random() % 50));
  text.begin = begin;
  return text;
}

TEST(MeasureCost, ScoresTheSecondHalfOfEachWindowAfterItsOwnTokensAlone) {
  for (const std::optional<int32_t> begin : {std::optional<int32_t>(), std::optional<int32_t>(3)}) {
    for (const int window : {4, 7, 300}) {
      SCOPED_TRACE(testing::Message() << window << (begin ? " with a begin token" : ""));
      const TextTokens text = SomeTokens(3 * window + (begin ? window - 2 : window - 1), begin);
      HashingModel stored(1), quantized(2);
      const auto cost = MeasureCost(stored, quantized, text, {window});
      ASSERT_TRUE(cost.ok()) << cost.status();
      std::vector<int32_t> tokens = text.tokens;
      if (begin) tokens.insert(tokens.begin(), *begin);
      std::vector<PositionCost> positions;
      for (int w = 0; w < 3; ++w) {  // What is left is no window.
        std::vector<int32_t> own(tokens.begin() + w * window, tokens.begin() + (w + 1) * window);
        if (begin) own[0] = *begin;
        for (int p = window / 2 + 1; p < window; ++p) {
          const absl::Span<const int32_t> before(own.data(), static_cast<size_t>(p));
          positions.push_back(OracleOf(stored.LogitsAfter(before), quantized.LogitsAfter(before), own[p]));
        }
      }
      const QuantizationCost oracle = Summarize(positions, 3);
      EXPECT_EQ(cost->windows, 3);
      EXPECT_EQ(cost->tokens, 3 * (window - 1 - window / 2));
      EXPECT_NEAR(cost->stored_perplexity, oracle.stored_perplexity, 1e-9 * oracle.stored_perplexity);
      EXPECT_NEAR(cost->quantized_perplexity, oracle.quantized_perplexity, 1e-9 * oracle.quantized_perplexity);
      EXPECT_NEAR(cost->mean_kl, oracle.mean_kl, 1e-12);
      EXPECT_NEAR(cost->kl_99, oracle.kl_99, 1e-12);
      EXPECT_EQ(cost->same_greedy, oracle.same_greedy);
      EXPECT_LE(stored.read_at_once(), 64u);
    }
  }
}

TEST(MeasureCost, StopsAtAsManyWindowsAsWereAskedFor) {
  HashingModel stored(1), quantized(2);
  std::vector<int64_t> told;
  CostOptions options{10, 2, [&](int64_t done, int64_t windows) {
                        EXPECT_EQ(windows, 2);
                        told.push_back(done);
                      }};
  const auto cost = MeasureCost(stored, quantized, SomeTokens(95, std::nullopt), options);
  ASSERT_TRUE(cost.ok()) << cost.status();
  EXPECT_EQ(cost->windows, 2);
  EXPECT_THAT(told, testing::ElementsAre(1, 2));
}

TEST(MeasureCost, RefusesWhatIsNoWindow) {
  HashingModel stored(1), quantized(2);
  const auto error = [&](int tokens, int window) {
    const auto cost = MeasureCost(stored, quantized, SomeTokens(tokens, std::nullopt), {window});
    EXPECT_EQ(cost.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(cost.status().message());
  };
  EXPECT_THAT(error(100, 3), HasSubstr("shorter than 4"));
  EXPECT_THAT(error(1000, 513), HasSubstr("exceeds the model's context of 512"));
  EXPECT_THAT(error(99, 100), HasSubstr("the text has 99 tokens, fewer than one window of 100"));
}

class UndefinedModel final : public PartialModel {
 public:
  UndefinedModel() {
    shape_.vocabulary_size = 50;
    shape_.context_window = 512;
  }
  absl::Status Forward(absl::Span<const Segment> segments, std::vector<SegmentOutput>& outputs) override {
    outputs.resize(1);
    outputs[0].row_readouts.resize(segments[0].row_readouts.size());
    for (Readout& row : outputs[0].row_readouts) row.status = absl::InternalError("a logit is not finite");
    return absl::OkStatus();
  }
};

TEST(MeasureCost, EndsWhereAModelGivesNoNumbers) {
  HashingModel stored(1);
  UndefinedModel quantized;
  const auto cost = MeasureCost(stored, quantized, SomeTokens(100, std::nullopt), {50});
  EXPECT_EQ(cost.status().code(), absl::StatusCode::kInternal);
}

// --- Tiny models. ---

std::unique_ptr<MoeModel> LoadAs(const std::string& name, const std::string& weights) {
  MoeModelOptions options;
  options.folder = TinyFolder(name);
  options.dtype = "float32";
  options.kv_cache_dtype = "float32";
  options.weights = weights;
  auto model = MoeModel::Load(options);
  EXPECT_TRUE(model.ok()) << model.status();
  return *std::move(model);
}

TextTokens TinyText(const MoeModel& model) {
  TextTokens text = SomeTokens(200, std::nullopt);
  for (int32_t& token : text.tokens) token = token * 31 % model.shape().vocabulary_size;
  return text;
}

TEST(MeasureCost, OfAModelBesideItselfIsNothing) {
  const auto stored = LoadAs("olmoe_tiny", "auto"), again = LoadAs("olmoe_tiny", "auto");
  const auto cost = MeasureCost(*stored, *again, TinyText(*stored), {64});
  ASSERT_TRUE(cost.ok()) << cost.status();
  EXPECT_EQ(cost->mean_kl, 0);
  EXPECT_EQ(cost->kl_99, 0);
  EXPECT_EQ(cost->same_greedy, 1);
  EXPECT_EQ(cost->stored_perplexity, cost->quantized_perplexity);
  EXPECT_GT(cost->stored_perplexity, 1);
}

TEST(MeasureCost, OfQuantizedModelsIsThatOfTheirLogits) {
  for (const std::string name : {"olmoe_tiny", "deepseek_v2_tiny"}) {
    const auto stored = LoadAs(name, "auto");
    const TextTokens text = TinyText(*stored);
    double kl[2] = {};
    for (const bool int4 : {false, true}) {
      SCOPED_TRACE(name + (int4 ? " int4" : " int8"));
      const auto quantized = LoadAs(name, int4 ? "int4" : "int8");
      const auto cost = MeasureCost(*stored, *quantized, text, {64});
      ASSERT_TRUE(cost.ok()) << cost.status();
      std::vector<PositionCost> positions;
      ASSERT_TRUE(stored->AllocateKvCache(SlotsOf(64)).ok() && quantized->AllocateKvCache(SlotsOf(64)).ok());
      for (int w = 0; w < 3; ++w) {
        for (int p = 33; p < 64; ++p) {  // Each from the beginning.
          const auto begin = text.tokens.begin() + 64 * w;
          const OwnedSegment segment = PromptSegment({{0, 64}}, std::vector<int32_t>(begin, begin + p));
          const auto a = RunSegments(*stored, {segment}), b = RunSegments(*quantized, {segment});
          ASSERT_TRUE(a.ok() && b.ok());
          positions.push_back(OracleOf((*a)[0].readout.logits, (*b)[0].readout.logits, begin[p]));
        }
      }
      const QuantizationCost oracle = Summarize(positions, 3);
      EXPECT_EQ(cost->tokens, oracle.tokens);
      EXPECT_NEAR(cost->mean_kl, oracle.mean_kl, 1e-9);
      EXPECT_NEAR(cost->quantized_perplexity, oracle.quantized_perplexity, 1e-6 * oracle.quantized_perplexity);
      EXPECT_EQ(cost->same_greedy, oracle.same_greedy);
      kl[int4] = cost->mean_kl;
    }
    EXPECT_GT(kl[0], 0);
    EXPECT_GT(kl[1], 4 * kl[0]);
  }
}

// --- Texts. ---

std::string WriteIn(const std::string& name, const std::string& content) {
  const std::string path = testing::TempDir() + "quantization_cost_" + name;
  std::ofstream(path, std::ios::binary) << content;
  return path;
}

TEST(ReadText, KnowsTheBeginTokenThatTheTokenizerAdds) {
  std::ifstream from(TinyFolder("olmoe_tiny") + "/tokenizer.json");
  nlohmann::json json = nlohmann::json::parse(from);
  const auto plain = Tokenizer::Load(TinyFolder("olmoe_tiny") + "/tokenizer.json");
  ASSERT_TRUE(plain.ok()) << plain.status();
  const int32_t pad = *(*plain)->TokenToId("<|pad|>"), end = *(*plain)->TokenToId("<|endoftext|>");
  json["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "<|pad|>"}, {"type_id", 0}}}},
        {{"Sequence", {{"id", "A"}, {"type_id", 0}}}},
        {{"SpecialToken", {{"id", "<|endoftext|>"}, {"type_id", 0}}}}}},
      {"pair", nlohmann::json::array({{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}})},
      {"special_tokens",
       {{"<|pad|>", {{"id", "<|pad|>"}, {"ids", {pad}}, {"tokens", {"<|pad|>"}}}},
        {"<|endoftext|>", {{"id", "<|endoftext|>"}, {"ids", {end}}, {"tokens", {"<|endoftext|>"}}}}}}};
  const auto framing = Tokenizer::Load(WriteIn("framing.json", json.dump()));
  ASSERT_TRUE(framing.ok()) << framing.status();
  const std::string path = WriteIn("text.txt", "one two three\n");
  const auto without = ReadText(path, **plain), with = ReadText(path, **framing);
  ASSERT_TRUE(without.ok()) << without.status();
  ASSERT_TRUE(with.ok()) << with.status();
  EXPECT_EQ(without->begin, std::nullopt);
  EXPECT_EQ(with->begin, pad);
  EXPECT_EQ(without->tokens, *(*plain)->Encode("one two three\n", false));
  EXPECT_EQ(with->tokens, without->tokens);
}

TEST(ReadText, NamesTheFileThatIsNoText) {
  const auto tokenizer = Tokenizer::Load(TinyFolder("olmoe_tiny") + "/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string path = WriteIn("bytes.txt",
                                   "good\xFF"
                                   "bad");
  const auto bytes = ReadText(path, **tokenizer);
  EXPECT_EQ(bytes.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(bytes.status().message()), HasSubstr(path));
  const auto missing = ReadText(path + ".missing", **tokenizer);
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr(".missing"));
}

}  // namespace
}  // namespace c3po
