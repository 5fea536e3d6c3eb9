#include "server/text/incremental_detokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/text/utf8.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

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

IncrementalDetokenizer Make(const std::shared_ptr<const Tokenizer>& tokenizer, std::vector<std::string> stop = {},
                            bool skip_special_tokens = false) {
  auto detokenizer = IncrementalDetokenizer::Create(tokenizer, std::move(stop), skip_special_tokens);
  EXPECT_TRUE(detokenizer.ok()) << detokenizer.status();
  return *std::move(detokenizer);
}

// The definition, read off the whole text: the first byte at which some stop string is complete decides.
std::string CutAtStop(const std::string& text, const std::vector<std::string>& stops, bool* stopped) {
  for (size_t end = 1; end <= text.size(); ++end) {
    const absl::string_view head = absl::string_view(text).substr(0, end);
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (absl::EndsWith(head, stop)) longest = std::max(longest, stop.size());
    }
    *stopped = longest > 0;
    if (*stopped) return text.substr(0, end - longest);
  }
  *stopped = false;
  return text;
}

TEST(IncrementalDetokenizer, AnyChunkingGivesTheWholeTextCutAtTheStop) {
  constexpr uint32_t kSeed = 3;
  std::mt19937 rng(kSeed);
  const std::vector<std::string> strings = GoldenStrings();
  int stops_hit = 0;
  for (const char* name : {"byte_level.json", "metaspace.json", "word_piece.json", "deepseek.json", "qwen.json"}) {
    const auto tokenizer = LoadGolden(name);
    for (int trial = 0; trial < 4000; ++trial) {
      // Encoded text, and now and then random ids, which leave broken characters.
      std::vector<int32_t> ids =
          Ids(*tokenizer, absl::StrCat(strings[rng() % strings.size()], " ", strings[rng() % strings.size()]), true);
      for (uint32_t extra = rng() % 3 == 0 ? rng() % 8 : 0; extra > 0; --extra) {
        ids.insert(ids.begin() + rng() % (ids.size() + 1), rng() % (tokenizer->vocabulary_size() + 5));
      }
      const bool skip_special_tokens = rng() % 2 == 0;
      const std::string whole = tokenizer->Decode(ids, skip_special_tokens);
      // Stop strings out of the text itself, whole characters, often overlapping one another.
      std::vector<std::string> stops;
      std::vector<size_t> boundaries;
      for (size_t position = 0; position < whole.size(); NextCodePoint(whole, &position))
        boundaries.push_back(position);
      boundaries.push_back(whole.size());
      for (uint32_t count = rng() % 4; count > 0 && boundaries.size() > 1; --count) {
        const size_t first = rng() % (boundaries.size() - 1);
        const size_t last = std::min(first + 1 + rng() % 4, boundaries.size() - 1);
        stops.push_back(whole.substr(boundaries[first], boundaries[last] - boundaries[first]) + (rng() % 4 ? "" : "~"));
      }
      bool expect_stopped = false;
      const std::string expected = CutAtStop(whole, stops, &expect_stopped);
      IncrementalDetokenizer detokenizer = Make(tokenizer, stops, skip_special_tokens);
      std::string text;
      for (size_t done = 0; done < ids.size();) {
        const size_t count = std::min<size_t>(ids.size() - done, rng() % 4);
        const std::string delta = detokenizer.Append(absl::MakeSpan(ids).subspan(done, count));
        ASSERT_TRUE(IsValidUtf8(delta));
        text.append(delta);
        ASSERT_TRUE(absl::StartsWith(expected, text)) << "sent too much; seed " << kSeed << " trial " << trial;
        done += count;
      }
      text.append(detokenizer.Flush());
      ASSERT_EQ(text, expected) << name << " seed " << kSeed << " trial " << trial;
      ASSERT_EQ(detokenizer.stopped(), expect_stopped) << name << " seed " << kSeed << " trial " << trial;
      if (expect_stopped) {
        ASSERT_TRUE(absl::StartsWith(absl::string_view(whole).substr(text.size()), stops[*detokenizer.stop_index()]));
      }
      stops_hit += expect_stopped;
    }
  }
  EXPECT_GT(stops_hit, 3000);
}

TEST(IncrementalDetokenizer, ACharacterWaitsForItsLastByte) {
  const auto tokenizer = LoadGolden("byte_level.json");
  const std::vector<int32_t> ids = Ids(*tokenizer, "\xE6\xB0\xB4");
  ASSERT_EQ(ids.size(), 3u);
  IncrementalDetokenizer detokenizer = Make(tokenizer);
  EXPECT_EQ(detokenizer.Append({ids[0]}), "");
  EXPECT_EQ(detokenizer.Append({ids[1]}), "");
  EXPECT_EQ(detokenizer.Append({ids[2]}), "\xE6\xB0\xB4");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(IncrementalDetokenizer, FlushShowsAnUnfinishedCharacterAsReplacement) {
  const auto tokenizer = LoadGolden("byte_level.json");
  IncrementalDetokenizer detokenizer = Make(tokenizer);
  EXPECT_EQ(detokenizer.Append({Ids(*tokenizer, "\xE6\xB0\xB4")[0]}), "");
  EXPECT_EQ(detokenizer.Flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(IncrementalDetokenizer, HoldsBackOnlyWhatCouldStartAStopString) {
  const auto tokenizer = LoadGolden("byte_level.json");
  const auto feed = [&](IncrementalDetokenizer& detokenizer, const std::string& text) {
    std::string out;
    for (const int32_t id : Ids(*tokenizer, text)) out.append(detokenizer.Append({id}));
    return out;
  };
  IncrementalDetokenizer detokenizer = Make(tokenizer, {"\n\nQ", "###"});
  EXPECT_EQ(feed(detokenizer, "a#"), "a");
  EXPECT_EQ(feed(detokenizer, "#b\n"), "##b");
  EXPECT_EQ(feed(detokenizer, "\n"), "");
  EXPECT_FALSE(detokenizer.stopped());
  EXPECT_EQ(feed(detokenizer, "Qc"), "");
  EXPECT_EQ(detokenizer.stop_index(), 0);
  EXPECT_EQ(feed(detokenizer, "more"), "");
  EXPECT_EQ(detokenizer.Flush(), "");
}

TEST(IncrementalDetokenizer, WithoutAMatchFlushReturnsWhatWasHeld) {
  const auto tokenizer = LoadGolden("byte_level.json");
  IncrementalDetokenizer detokenizer = Make(tokenizer, {"##!"});
  EXPECT_EQ(detokenizer.Append(Ids(*tokenizer, "x##")), "x");
  EXPECT_EQ(detokenizer.Flush(), "##");
  EXPECT_FALSE(detokenizer.stopped());
}

TEST(IncrementalDetokenizer, BadStopStringsAreRefusedByPlace) {
  const auto tokenizer = LoadGolden("byte_level.json");
  const absl::Status empty = IncrementalDetokenizer::Create(tokenizer, {"a", ""}, false).status();
  EXPECT_EQ(empty.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(empty.message()), HasSubstr("stop[1]: is empty"));
  const absl::Status broken = IncrementalDetokenizer::Create(tokenizer, {"\xC3"}, false).status();
  EXPECT_EQ(broken.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(broken.message()), HasSubstr("stop[0]: is not valid UTF-8"));
}

}  // namespace
}  // namespace c3po
