// Encoding from a seam on (Tokenizer::FindSeam) against encoding the whole text, which is the oracle.

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "server/text/open_text.h"
#include "server/text/regex.h"
#include "server/text/unicode.h"
#include "server/text/utf8.h"
#include "tests/server/text/golden_case.h"

namespace c3po {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

constexpr uint32_t kSeed = 20261129;

// White space, marks, digits, cased and uncased letters, composites in parts, and what patterns look for, parted by
// "~".
constexpr char kAtoms[] =
    " ~ ~  ~\n~\r\n~\t~ \n ~\xC2\xA0~\xE3\x80\x80~a~e~th~The~ the~'s~'~'ll~zig~ zag~zig zag~0~7~12~345~"
    "\xC2\xBD~\xC2\xB2~.~,~<|~|>~<~-~``~_~/~\xC3\xA9~e\xCC\x81~\xCC\x81~\xCC\xA7~\xC7\x85~\xCE\xA3~\xC4\xB0~"
    "\xEF\xAC\x81~\xE1\x84\x80~\xE1\x85\xA1~\xE1\x86\xA8~\xEA\xB0\x80~\xE6\xB0\xB4~\xE3\x81\x8B~\xE3\x82\x99~"
    "\xE0\xB8\x81~\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA7~\xE2\x96\x81~\xE2\x80\x8B~\xC3\xB8~\0~x~ab~c~"
    "\r~'RE~\xE2\x80\x8D~\xEF\xB8\x8F~\xE2\x80\xA8~\xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD~\xD9\xA3~\xEF\xBC\x91~"
    "\xEF\xBF\xBD~\xED\x9F\xBF";

const std::vector<std::string>& Atoms() {
  static const auto* const kStrings =
      new std::vector<std::string>(absl::StrSplit(absl::string_view(kAtoms, sizeof(kAtoms) - 1), '~'));
  return *kStrings;
}

// The added tokens' contents, and the atoms.
class Texts {
 public:
  Texts(const json& tokenizer, uint32_t seed) : random_(seed) {
    if (!tokenizer.contains("added_tokens") || tokenizer["added_tokens"].is_null()) return;
    for (const json& token : tokenizer["added_tokens"]) tokens_.push_back(token["content"]);
  }

  size_t Below(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }

  std::string Some(size_t atoms) {
    std::string text;
    for (size_t i = 0; i < atoms; ++i) {
      const bool token = !tokens_.empty() && Below(12) == 0;
      const std::vector<std::string>& from = token ? tokens_ : Atoms();
      text += from[Below(from.size())];
    }
    return text;
  }

  // Both ends of one text, cut between any two of its characters: an added token, a number, a composite is split.
  std::pair<std::string, std::string> Halves() {
    const size_t atoms = 4 + Below(Below(8) == 0 ? 40 : 12);  // The seam looks at few.
    const std::string whole = Some(atoms) + (tokens_.empty() ? "" : tokens_[Below(tokens_.size())]) + Some(Below(4));
    std::vector<size_t> places;
    for (size_t position = 0; position < whole.size(); NextCodePoint(whole, &position)) places.push_back(position);
    const size_t near_end = std::min<size_t>(places.size(), 25);
    const size_t at = places[places.size() - 1 - Below(near_end)];
    return {whole.substr(0, at), whole.substr(at)};
  }

 private:
  std::mt19937 random_;
  std::vector<std::string> tokens_;
};

// Both ways.
void ExpectTheSame(const Tokenizer& tokenizer, const std::string& prompt, const std::vector<std::string>& continuations,
                   bool special, const std::string& trace) {
  const auto ids = tokenizer.Encode(prompt, special);
  if (!ids.ok()) return;  // Its pattern backtracks without end.
  const Tokenizer::Seam seam = tokenizer.FindSeam(prompt, special, *ids);
  ASSERT_LE(seam.ids_kept, ids->size());
  for (const std::string& continuation : continuations) {
    const auto whole = tokenizer.Encode(prompt + continuation, special);
    if (!whole.ok()) continue;
    const auto rest = tokenizer.EncodeAfter(seam, continuation);
    ASSERT_TRUE(rest.ok()) << rest.status();
    Ids joined(ids->begin(), ids->begin() + static_cast<ptrdiff_t>(seam.ids_kept));
    joined.insert(joined.end(), rest->begin(), rest->end());
    ASSERT_EQ(joined, *whole) << trace << "\n"
                              << json({prompt, continuation, seam.normalized, seam.raw}).dump() << " special "
                              << special;
  }
}

// Every other prompt with special tokens, which depend on no text.
void CompareManyTexts(const Tokenizer& tokenizer, const json& data, int prompts, const std::string& trace) {
  Texts texts(data, kSeed);
  for (int i = 0; i < prompts && !testing::Test::HasFatalFailure(); ++i) {
    auto [prompt, rest] = texts.Halves();
    std::vector<std::string> continuations = {"", rest, " ", "\n", "\xCC\x81", "a"};
    for (int k = 0; k < 5; ++k) continuations.push_back(texts.Some(1 + texts.Below(3)));
    ExpectTheSame(tokenizer, prompt, continuations, i % 2 == 1, trace);
  }
}

std::vector<json> GoldenHeaders() {
  std::vector<json> headers;
  for (const auto& entry : std::filesystem::directory_iterator(GoldenPath(""))) {
    const std::string name = entry.path().filename().string();
    if (name.size() < 15 || name.substr(name.size() - 15) != ".expected.jsonl") continue;
    std::ifstream stream(entry.path());
    std::string line;
    std::getline(stream, line);
    headers.push_back(json::parse(line));
  }
  std::sort(headers.begin(), headers.end(), [](const json& a, const json& b) { return a["case"] < b["case"]; });
  return headers;
}

json FileOf(const json& header) {
  std::ifstream stream(header["case"] == "olmo" ? OlmoTokenizerPath() : GoldenPath(header["base"]));
  json data = json::parse(stream);
  if (header.contains("overrides")) data.update(header["overrides"]);
  return data;
}

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadJson(const json& data) {
  const std::string path = WriteTemporary("seam.json", data.dump());
  auto tokenizer = Tokenizer::Load(path);
  unlink(path.c_str());
  return tokenizer;
}

std::string Words(size_t bytes) {
  std::string text;
  for (int i = 0; text.size() < bytes; ++i) absl::StrAppend(&text, "What is ", i, " modulo seven, dear reader?\n");
  return text;
}

TEST(SeamCut, EveryGoldenTokenizerGivesTheIdsOfTheWholeText) {
  const std::vector<json> headers = GoldenHeaders();
  ASSERT_GE(headers.size(), 15u);
  for (const json& header : headers) {
    const auto tokenizer = LoadCase(header);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    CompareManyTexts(**tokenizer, FileOf(header), 200, header["case"]);
    if (HasFatalFailure()) return;
  }
}

// Each pre-tokenizer and normalizer of the goldens, also those with nothing to cut at, before bytes; and two after one
// another, each of which may put a prefix.
TEST(SeamCut, EveryStageGivesTheIdsOfTheWholeText) {
  const std::vector<json> stages = ReadJsonLines(GoldenPath("stages.jsonl"));
  ASSERT_GT(stages.size(), 100u);
  const json bytes = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const auto sequence = [](const std::string& members, std::vector<json> steps) {
    return json{{"type", "Sequence"}, {members, std::move(steps)}};
  };
  std::mt19937 random(kSeed);
  std::vector<json> pre_tokenizers, normalizers;
  for (const json& stage : stages) {
    if (stage.contains("pre_tokenizer")) pre_tokenizers.push_back(stage["pre_tokenizer"]);
    if (stage.contains("normalizer")) normalizers.push_back(stage["normalizer"]);
  }
  for (const std::string base : {"byte_level.json", "metaspace.json"}) {
    bool takes_pairs = base == "byte_level.json";  // The one base takes the even ones, the other the odd ones.
    json data = FileOf({{"case", ""}, {"base", base}});
    const json own = data["pre_tokenizer"];
    const auto compare = [&](const json& pre_tokenizer, const json& normalizer) {
      data["pre_tokenizer"] = pre_tokenizer;
      data["normalizer"] = normalizer;
      const auto tokenizer = LoadJson(data);
      ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
      CompareManyTexts(**tokenizer, data, 18, absl::StrCat(base, pre_tokenizer.dump(), normalizer.dump()));
    };
    for (const json& stage : pre_tokenizers) {
      const json& other = pre_tokenizers[std::uniform_int_distribution<size_t>(0, pre_tokenizers.size() - 1)(random)];
      compare(own.is_null() ? stage : sequence("pretokenizers", {stage, own}), nullptr);
      if (takes_pairs) compare(sequence("pretokenizers", {other, stage, bytes}), nullptr);
      takes_pairs = !takes_pairs;
      if (HasFatalFailure()) return;
    }
    for (const json& stage : normalizers) {
      const json& other = normalizers[std::uniform_int_distribution<size_t>(0, normalizers.size() - 1)(random)];
      compare(own, stage);
      if (takes_pairs) compare(own, sequence("normalizers", {other, stage}));
      takes_pairs = !takes_pairs;
      if (HasFatalFailure()) return;
    }
  }
}

// Where a cut is known to be there, little is encoded anew; where the stages look across, all of it.
TEST(SeamCut, LittleOfALongTextIsEncodedWithWhatFollows) {
  const std::string text = Words(12 << 10);
  for (const json& header : GoldenHeaders()) {
    const auto tokenizer = LoadCase(header);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::string name = header["case"];
    const Tokenizer::Seam seam = (*tokenizer)->FindSeam(text, true, *(*tokenizer)->Encode(text, true));
    if (name == "word_piece" || name == "cased") {
      EXPECT_EQ(seam.raw, text) << name;  // BertNormalizer.
    } else {
      EXPECT_LT(seam.bytes(), 60u) << name << " " << seam.normalized << "|" << seam.raw;
      EXPECT_GT(seam.ids_kept, 1000u) << name;
    }
  }
}

// Added tokens with every flag, of one character or white space alone: they begin, end and overlap anywhere.
TEST(SeamCut, AddedTokensOfEveryKindGiveTheIdsOfTheWholeText) {
  std::mt19937 random(kSeed);
  const auto below = [&random](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
  for (const char* base : {"byte_level.json", "metaspace.json"}) {
    const json file = FileOf({{"case", ""}, {"base", base}});
    for (int k = 0; k < 25; ++k) {
      json data = file;
      const json& vocab = data["model"]["vocab"];
      int32_t next_id = 0;
      for (const json& id : vocab) next_id = std::max(next_id, id.get<int32_t>() + 1);
      for (const json& token : data["added_tokens"]) next_id = std::max(next_id, token["id"].get<int32_t>() + 1);
      std::vector<std::string> contents;
      for (const json& token : data["added_tokens"]) contents.push_back(token["content"]);
      for (int i = 0; i < 5; ++i) {
        std::string content = Atoms()[below(Atoms().size())];
        if (below(2) == 0) content += Atoms()[below(Atoms().size())];
        if (std::find(contents.begin(), contents.end(), content) != contents.end()) continue;
        contents.push_back(content);
        const int32_t id = vocab.contains(content) ? vocab[content].get<int32_t>() : next_id++;
        data["added_tokens"].push_back({{"id", id},
                                        {"content", content},
                                        {"single_word", below(3) == 0},
                                        {"lstrip", below(3) == 0},
                                        {"rstrip", below(3) == 0},
                                        {"normalized", below(2) == 0},
                                        {"special", false}});
      }
      const auto tokenizer = LoadJson(data);
      ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
      CompareManyTexts(**tokenizer, data, 20, absl::StrCat(base, data["added_tokens"].dump()));
      if (HasFatalFailure()) return;
    }
  }
}

// The normalizer puts its prefix before the prompt, and nothing before what follows the token.
TEST(SeamCut, NothingIsPutBehindATokenOfNormalizedText) {
  json data = FileOf({{"case", ""}, {"base", "metaspace.json"}});
  data["pre_tokenizer"] = nullptr;
  data["normalizer"] = {{"type", "Prepend"}, {"prepend", "a"}};
  data["added_tokens"].push_back({{"id", 100000},
                                  {"content", "<tool>"},  // In texts "a<tool>", as the normalizer makes of it.
                                  {"single_word", false},
                                  {"lstrip", false},
                                  {"rstrip", false},
                                  {"normalized", true},
                                  {"special", false}});
  const auto tokenizer = LoadJson(data);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::string text = Words(4 << 10) + "a<tool>x";
  const Ids ids = *(*tokenizer)->Encode(text, false);
  ASSERT_THAT(ids, testing::Contains(100000));
  EXPECT_EQ((*tokenizer)->FindSeam(text, false, ids).raw, "x");
  ExpectTheSame(**tokenizer, text, {"", "a", " b", "a<tool>"}, false, "");
}

TEST(SeamCut, BytesAreCounted) {
  const auto tokenizer = Tokenizer::Load(GoldenPath("byte_level.json"));
  const std::string text = Words(10 << 10);
  const Ids ids = *(*tokenizer)->Encode(text, false);
  EXPECT_EQ((*tokenizer)->bytes_encoded(), static_cast<int64_t>(text.size()));
  const Tokenizer::Seam seam = (*tokenizer)->FindSeam(text, false, ids);
  const int64_t found = (*tokenizer)->bytes_encoded();
  EXPECT_LT(found, static_cast<int64_t>(2 * text.size() + 100));
  ASSERT_TRUE((*tokenizer)->EncodeAfter(seam, "seven").ok());
  EXPECT_EQ((*tokenizer)->bytes_encoded() - found, static_cast<int64_t>(seam.bytes() + 5));
}

TEST(SeamCut, ABadByteIsToldByItsPlaceInTheContinuation) {
  const auto tokenizer = Tokenizer::Load(GoldenPath("byte_level.json"));
  const Tokenizer::Seam seam = (*tokenizer)->FindSeam("one two", false, *(*tokenizer)->Encode("one two", false));
  EXPECT_EQ((*tokenizer)->EncodeAfter(seam, "a\xff").status().message(), "text is not valid UTF-8 at byte 1");
}

// What PCRE2's partial matching says is sure, against all matches of longer texts.
TEST(SeamCut, SureMatchesAreThoseOfEveryLongerText) {
  std::mt19937 random(kSeed);
  int closed = 0;
  for (const json& stage : ReadJsonLines(GoldenPath("stages.jsonl"))) {
    const json& step = stage.contains("pre_tokenizer") ? stage["pre_tokenizer"] : stage["normalizer"];
    if (!step.contains("pattern") || !step["pattern"].contains("Regex")) continue;
    const auto regex = Regex::Compile(step["pattern"]["Regex"].get<std::string>());
    ASSERT_TRUE(regex.ok()) << regex.status();
    closed += !regex->restarts();
    Texts texts(json::object(), kSeed);
    for (int i = 0; i < 200; ++i) {
      const std::string text = texts.Some(1 + texts.Below(12));
      const auto found = regex->FindSure(text);
      ASSERT_TRUE(found.ok()) << found.status();
      for (int k = 0; k < 8; ++k) {
        const auto all = regex->FindAll(text + texts.Some(texts.Below(4)));
        ASSERT_TRUE(all.ok()) << all.status();
        ASSERT_GE(all->size(), found->matches.size()) << step;
        for (size_t m = 0; m < all->size(); ++m) {
          if (m < found->matches.size()) {
            ASSERT_EQ((*all)[m].begin, found->matches[m].begin) << step;
            ASSERT_EQ((*all)[m].end, found->matches[m].end) << step;
          } else {
            ASSERT_GE((*all)[m].begin, found->sure) << step << json(text);
          }
        }
      }
    }
  }
  EXPECT_GT(closed, 10);
}

TEST(SeamCut, PatternsThatLookBehindOrMatchNothingRestartNowhere) {
  for (const char* pattern :
       {"(?<=a).", "(?<!\\s)\\p{N}+(?=\\D)", "^\\s", "x|\\Ay", "a*", "", "x?|e", "(?=t)", "\\z", "$"})
    EXPECT_FALSE(Regex::Compile(pattern)->restarts()) << pattern;
  for (const char* pattern : {"\\s+$", "\\s+(?!\\S)|\\s+", "[^\\r\\n]+", "(?>a+)b", "\\^", "x(?=y)", "(?!x)."})
    EXPECT_TRUE(Regex::Compile(pattern)->restarts()) << pattern;
  EXPECT_TRUE(Regex::Literal("^")->restarts());
  EXPECT_FALSE(Regex::Literal("")->restarts());
}

TEST(SeamCut, NormalFormsOfTwoSidesAreThatOfTheWhole) {
  std::mt19937 random(kSeed);
  std::vector<std::pair<NormalizationForm, const char*>> forms = {{NormalizationForm::kNfc, "NFC"},
                                                                  {NormalizationForm::kNfd, "NFD"},
                                                                  {NormalizationForm::kNfkc, "NFKC"},
                                                                  {NormalizationForm::kNfkd, "NFKD"}};
  const std::vector<std::string> before = {
      "e", "\xE1\x84\x80", "\xEA\xB0\x80", "\xC3\xA9\xCC\xA7", "\xE3\x81\x8B", "a\xCC\x81"};
  for (const auto& [form, name] : forms) {
    int starts = 0, joins = 0;
    // The sides one after the other in one text, with ASCII between, which starts a normal form.
    std::vector<std::string> normal_lefts;
    for (const std::string& left : before) normal_lefts.push_back(NormalizeUnicode(left, form));
    for (char32_t c = 0x80; c < 0x30000; ++c) {
      if (c >= 0xD800 && c < 0xE000) continue;
      // Of blocks whose characters are alike every 16th: ideographs, Hangul syllables, private use, cuneiform, Tangut.
      const bool is_plain = (c >= 0x3400 && c < 0xA000) || (c >= 0xAC00 && c < 0xD7A0) || (c >= 0xE000 && c < 0xF900) ||
                            (c >= 0x12000 && c < 0x14400) || (c >= 0x17000 && c < 0x18B00) ||
                            (c >= 0x20000 && c < 0x2F800);
      if (is_plain && c % 16 != 0) continue;
      if (!StartsNormalization(c, form)) {
        ++joins;
        continue;
      }
      ++starts;
      std::string behind;
      AppendCodePoint(c, &behind);
      behind += "\xCC\x81";
      const std::string normal_behind = NormalizeUnicode(behind, form);
      std::string whole, expected;
      for (size_t i = 0; i < before.size(); ++i) {
        absl::StrAppend(&whole, before[i], behind, "x");
        absl::StrAppend(&expected, normal_lefts[i], normal_behind, "x");
      }
      ASSERT_EQ(expected, NormalizeUnicode(whole, form)) << name << " " << static_cast<uint32_t>(c);
    }
    EXPECT_GT(starts, 50000);
    EXPECT_GT(joins, 700);
  }
}

}  // namespace
}  // namespace c3po
