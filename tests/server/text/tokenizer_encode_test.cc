#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <time.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::shared_ptr<const Tokenizer> LoadGolden(const std::string& name) {
  const auto tokenizer = Tokenizer::Load(GoldenPath(name));
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *tokenizer;
}

std::vector<int32_t> Ids(const Tokenizer& tokenizer, const std::string& text, bool add_special_tokens = false) {
  const auto ids = tokenizer.Encode(text, add_special_tokens);
  EXPECT_TRUE(ids.ok()) << ids.status();
  return *ids;
}

TEST(TokenizerEncode, InvalidUtf8IsRefusedWithItsPlace) {
  const auto tokenizer = LoadGolden("byte_level.json");
  for (const char* text : {"ab\xFF", "ab\xC3", "ab\xC0\x80", "ab\xED\xA0\x80", "ab\xF4\x90\x80\x80", "ab\x80"}) {
    const auto ids = tokenizer->Encode(text, false);
    EXPECT_EQ(ids.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(ids.status().message()), HasSubstr("at byte 2"));
  }
}

TEST(TokenizerEncode, SpecialTokensAreAddedOnlyWhenAsked) {
  const auto tokenizer = LoadGolden("word_piece.json");
  const int32_t cls = *tokenizer->TokenToId("[CLS]");
  const int32_t sep = *tokenizer->TokenToId("[SEP]");
  EXPECT_THAT(Ids(*tokenizer, "", true), ElementsAre(cls, sep));
  EXPECT_TRUE(Ids(*tokenizer, "", false).empty());
  EXPECT_THAT(Ids(*tokenizer, "[SEP]"), ElementsAre(sep));
}

TEST(TokenizerEncode, TheFilesTruncationAndPaddingAreIgnored) {
  const auto tokenizer = LoadGolden("word_piece.json");
  EXPECT_EQ(Ids(*tokenizer, "a", true).size(), 3u);
  EXPECT_EQ(Ids(*tokenizer, "a a a a a a a a a a a a a a a a a a a a", true).size(), 22u);
}

TEST(TokenizerEncode, AddedTokensTakeTheSpaceTheirFlagsSay) {
  const auto byte_level = LoadGolden("byte_level.json");
  const int32_t tool = *byte_level->TokenToId("<|tool|>");  // lstrip.
  EXPECT_THAT(Ids(*byte_level, " \n <|tool|>"), ElementsAre(tool));
  EXPECT_EQ(Ids(*byte_level, "<|tool|> ", false).size(), 2u);
  const int32_t zig_zag = *byte_level->TokenToId("zig zag");  // single_word.
  EXPECT_THAT(Ids(*byte_level, "zig zag"), ElementsAre(zig_zag));
  EXPECT_THAT(Ids(*byte_level, "zig zags"), testing::Not(testing::Contains(zig_zag)));
  EXPECT_THAT(Ids(*byte_level, "\xC3\xA9zig zag"), testing::Not(testing::Contains(zig_zag)));
  EXPECT_THAT(Ids(*byte_level, "-zig zag-"), testing::Contains(zig_zag));
  const auto metaspace = LoadGolden("metaspace.json");
  const int32_t sep = *metaspace->TokenToId("<sep>");  // rstrip.
  EXPECT_THAT(Ids(*metaspace, "<sep> \t "), ElementsAre(sep));
}

TEST(Tokenizer, TellsPiecesBytesAndSpecials) {
  const auto tokenizer = LoadGolden("byte_level.json");
  const int32_t the = *tokenizer->TokenToId("\xC4\xA0the");
  EXPECT_EQ(tokenizer->Piece(the), "\xC4\xA0the");
  EXPECT_EQ(tokenizer->TokenBytes(the), " the");
  EXPECT_EQ(tokenizer->TokenBytes(Ids(*tokenizer, "\xE6\xB0\xB4")[0]), "\xE6");
  EXPECT_TRUE(tokenizer->IsSpecial(*tokenizer->TokenToId("<|endoftext|>")));
  EXPECT_FALSE(tokenizer->IsSpecial(*tokenizer->TokenToId("zig zag")));
  EXPECT_EQ(tokenizer->vocabulary_size(), 1002);
  EXPECT_EQ(tokenizer->TokenToId("no such piece"), std::nullopt);
  for (const int32_t outside : {-1, 1002, INT32_MAX, INT32_MIN}) {
    EXPECT_EQ(tokenizer->Piece(outside), "");
    EXPECT_EQ(tokenizer->TokenBytes(outside), "");
    EXPECT_FALSE(tokenizer->IsSpecial(outside));
    EXPECT_EQ(tokenizer->Decode({the, outside, the}, false), " the the");
  }
  const auto metaspace = LoadGolden("metaspace.json");
  EXPECT_EQ(metaspace->TokenBytes(*metaspace->TokenToId("<0xE6>")), "\xE6");
  EXPECT_EQ(metaspace->TokenBytes(*metaspace->TokenToId("\xE2\x96\x81the")), " the");
}

// Merges of a byte-level file applied in the plainest way: scan for the best pair, join it everywhere left to right,
// repeat.
class NaiveBytePairEncoding {
 public:
  explicit NaiveBytePairEncoding(const std::string& path) {
    std::ifstream stream(path);
    const nlohmann::json file = nlohmann::json::parse(stream);
    int rank = 0;
    for (const auto& merge : file["model"]["merges"]) ranks_[{merge[0], merge[1]}] = rank++;
  }

  std::vector<std::string> Tokenize(const std::string& letters) const {
    std::vector<std::string> pieces;
    for (const char letter : letters) pieces.emplace_back(1, letter);
    while (true) {
      auto best = ranks_.end();
      for (size_t i = 0; i + 1 < pieces.size(); ++i) {
        const auto found = ranks_.find({pieces[i], pieces[i + 1]});
        if (found != ranks_.end() && (best == ranks_.end() || found->second < best->second)) best = found;
      }
      if (best == ranks_.end()) return pieces;
      std::vector<std::string> joined;
      for (size_t i = 0; i < pieces.size(); ++i) {
        const bool match =
            i + 1 < pieces.size() && pieces[i] == best->first.first && pieces[i + 1] == best->first.second;
        joined.push_back(match ? pieces[i] + pieces[i + 1] : pieces[i]);
        i += match;
      }
      pieces = std::move(joined);
    }
  }

 private:
  std::map<std::pair<std::string, std::string>, int> ranks_;
};

TEST(BytePairEncoding, JoinsThePairsThatTheNaiveAlgorithmJoins) {
  constexpr uint32_t kSeed = 11;
  const auto tokenizer = LoadGolden("byte_level.json");
  const NaiveBytePairEncoding naive(GoldenPath("byte_level.json"));
  std::mt19937 rng(kSeed);
  for (int trial = 0; trial < 2000; ++trial) {
    std::string word;
    for (uint32_t length = 1 + rng() % 40; length > 0; --length) word.push_back("etaoinshrdlu"[rng() % 12]);
    std::vector<std::string> pieces;
    for (const int32_t id : Ids(*tokenizer, word)) pieces.emplace_back(tokenizer->Piece(id));
    ASSERT_EQ(pieces, naive.Tokenize(word)) << word << ", seed " << kSeed;
  }
}

// A merge algorithm that is quadratic needs minutes here; this takes some milliseconds.
// At least `bytes` of a unit again and again, and what a pattern may look ahead for comes to nothing at its end.
std::string Repeated(const std::string& unit, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text.append(unit);
  return text.append("\x01");
}

// Of this thread, so that others on the machine do not count.
double CpuSecondsToEncode(const Tokenizer& tokenizer, const std::string& text) {
  const auto now = [] {
    timespec time{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  const double start = now();
  EXPECT_TRUE(tokenizer.Encode(text, false).ok());
  return now() - start;
}

// Four times the text is 4 times the work, and 16 times where it grows with the square. The least of some tries, as
// caches and a first allocation make one of them long.
TEST(TokenizerEncode, LongInputsTakeNoQuadraticTime) {
  constexpr double kBetween = 10, kTooShortToTell = 2e-3;
  for (const char* name : {"byte_level.json", "metaspace.json", "word_piece.json", "deepseek.json", "qwen.json"}) {
    const auto tokenizer = LoadGolden(name);
    for (const char* unit : {"the", "a", " ", "\n", "1", "<|", "\xCC\x81\xCC\xA3", "the sea ", "!?"}) {
      const std::string text = Repeated(unit, 50000), longer = Repeated(unit, 200000);
      double ratio = kBetween;
      for (int attempt = 0; attempt < 4 && ratio >= kBetween; ++attempt) {
        const double seconds = std::max(CpuSecondsToEncode(*tokenizer, text), kTooShortToTell);
        ratio = std::min(ratio, CpuSecondsToEncode(*tokenizer, longer) / seconds);
      }
      EXPECT_LT(ratio, kBetween) << name << " with \"" << unit << "\"";
      if (std::string(name) == "byte_level.json") {
        EXPECT_EQ(tokenizer->Decode(*tokenizer->Encode(longer, false), false), longer);
      }
    }
  }
}

TEST(TokenizerEncode, ManyThreadsShareOneTokenizer) {
  for (const char* name : {"byte_level.json", "metaspace.json", "word_piece.json"}) {
    const auto tokenizer = LoadGolden(name);
    const std::vector<std::string> strings = GoldenStrings();
    std::vector<std::vector<int32_t>> expected;
    for (const std::string& text : strings) expected.push_back(Ids(*tokenizer, text, true));
    std::vector<int> differences(4, 0);
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        for (size_t i = 0; i < strings.size(); ++i) {
          const size_t at = (i + strings.size() * t / 4) % strings.size();
          differences[t] += Ids(*tokenizer, strings[at], true) != expected[at];
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_THAT(differences, ElementsAre(0, 0, 0, 0)) << name;
  }
}

}  // namespace
}  // namespace c3po
