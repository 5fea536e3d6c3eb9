#include "server/text/gguf_pre_tokenizer.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

// Words of Qwen, and of Llama 3 with up to three digits together.
constexpr char kContractions[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
constexpr char kLettersWithLead[] = R"(|[^\r\n\p{L}\p{N}]?\p{L}+)";
constexpr char kSymbolsAndSpaces[] = R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// Mistral's Tekken: words end where capitals begin.
constexpr char kTekken[] = R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+)"
                           R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*)"
                           R"(|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
// DeepSeek-V3.
constexpr char kDeepseekV3Words[] =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+)"
    R"(| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kDeepseekV3Ideographs[] = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+";
// DeepSeek's first tokenizers.
constexpr char kPunctuation[] = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+";
constexpr char kIdeographs[] = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+";
// The letters that they list: those of cased scripts.
constexpr std::pair<uint32_t, uint32_t> kCasedLetters[] = {
    {0x41, 0x5a},       {0x61, 0x7a},       {0xb5, 0xb5},       {0xc0, 0xd6},       {0xd8, 0xf6},
    {0xf8, 0x1ba},      {0x1bc, 0x1bf},     {0x1c4, 0x293},     {0x295, 0x2af},     {0x370, 0x373},
    {0x376, 0x377},     {0x37b, 0x37d},     {0x37f, 0x37f},     {0x386, 0x386},     {0x388, 0x38a},
    {0x38c, 0x38c},     {0x38e, 0x3a1},     {0x3a3, 0x3f5},     {0x3f7, 0x481},     {0x48a, 0x52f},
    {0x531, 0x556},     {0x10a0, 0x10c5},   {0x13a0, 0x13f5},   {0x13f8, 0x13fd},   {0x1c90, 0x1cba},
    {0x1cbd, 0x1cbf},   {0x1d00, 0x1d2b},   {0x1d6b, 0x1d77},   {0x1d79, 0x1d9a},   {0x1e00, 0x1f15},
    {0x1f18, 0x1f1d},   {0x1f20, 0x1f45},   {0x1f48, 0x1f4d},   {0x1f50, 0x1f57},   {0x1f59, 0x1f59},
    {0x1f5b, 0x1f5b},   {0x1f5d, 0x1f5d},   {0x1f5f, 0x1f7d},   {0x1f80, 0x1fb4},   {0x1fb6, 0x1fbc},
    {0x1fbe, 0x1fbe},   {0x1fc2, 0x1fc4},   {0x1fc6, 0x1fcc},   {0x1fd0, 0x1fd3},   {0x1fd6, 0x1fdb},
    {0x1fe0, 0x1fec},   {0x1ff2, 0x1ff4},   {0x1ff6, 0x1ffc},   {0x2102, 0x2102},   {0x2107, 0x2107},
    {0x210a, 0x2113},   {0x2115, 0x2115},   {0x2119, 0x211d},   {0x2124, 0x2124},   {0x2126, 0x2126},
    {0x2128, 0x2128},   {0x212a, 0x212d},   {0x212f, 0x2134},   {0x2139, 0x2139},   {0x213c, 0x213f},
    {0x2145, 0x2149},   {0x214e, 0x214e},   {0x2183, 0x2184},   {0x2c00, 0x2c7b},   {0x2c7e, 0x2ce4},
    {0x2ceb, 0x2cee},   {0x2cf2, 0x2cf3},   {0xa640, 0xa66d},   {0xa680, 0xa69b},   {0xa722, 0xa76f},
    {0xa771, 0xa787},   {0xa78b, 0xa78e},   {0xab70, 0xabbf},   {0xfb00, 0xfb06},   {0xfb13, 0xfb17},
    {0xff21, 0xff3a},   {0xff41, 0xff5a},   {0x10400, 0x1044f}, {0x104b0, 0x104d3}, {0x104d8, 0x104fb},
    {0x10c80, 0x10cb2}, {0x10cc0, 0x10cf2}, {0x118a0, 0x118df}, {0x1e900, 0x1e943},
};

std::string CasedWords() {
  std::string pattern = "\\s?[";
  for (const auto& [first, last] : kCasedLetters) {
    AppendCodePoint(first, &pattern);
    if (first == last) continue;
    pattern += '-';
    AppendCodePoint(last, &pattern);
  }
  return pattern + "]+";
}

Json Split(const std::string& pattern) {
  return {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
}
Json Digits() { return {{"type", "Digits"}, {"individual_digits", true}}; }
// `words`: cut at GPT-2's words first.
Json Bytes(bool words) {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", words}};
}

GgufStages Stages(const Json& normalizer, const std::vector<Json>& steps) {
  Json sequence = {{"type", "Sequence"}, {"pretokenizers", steps}};
  return {normalizer.dump(), sequence.dump()};
}

const Json& Nfc() {
  static const auto* const kNfc = new Json(Json::object({{"type", "NFC"}}));
  return *kNfc;
}

GgufStages Llama3() {
  GgufStages stages =
      Stages(Json(),
             {Split(absl::StrCat(kContractions, kLettersWithLead, R"(|\p{N}{1,3})", kSymbolsAndSpaces)), Bytes(false)});
  stages.ignore_merges = stages.begins = true;
  return stages;
}

using Make = GgufStages (*)();
constexpr std::pair<const char*, Make> kKnown[] = {
    {"gpt-2", [] { return Stages(Json(), {Bytes(true)}); }},
    {"olmo", [] { return Stages(Nfc(), {Bytes(true)}); }},
    {"refact",
     [] {
       return Stages(Json(), {Digits(), Bytes(true)});
     }},
    {"starcoder",
     [] {
       return Stages(Json(), {Digits(), Bytes(true)});
     }},
    {"smollm",
     [] {
       return Stages(Json(), {Digits(), Bytes(true)});
     }},
    {"qwen2",
     [] {
       return Stages(
           Nfc(), {Split(absl::StrCat(kContractions, kLettersWithLead, R"(|\p{N})", kSymbolsAndSpaces)), Bytes(false)});
     }},
    {"llama-bpe", Llama3},
    {"llama3", Llama3},
    {"llama-v3", Llama3},
    {"tekken",
     [] {
       GgufStages stages = Stages(Json(), {Split(kTekken), Bytes(false)});
       stages.ignore_merges = stages.begins = true;
       return stages;
     }},
    {"deepseek-llm",
     [] {
       return Stages(Json(), {Split(R"([\r\n])"), Split(CasedWords()), Split(kPunctuation), Split(R"(\s+$)"),
                              Split(kIdeographs), Digits(), Bytes(false)});
     }},
    {"deepseek-coder",
     [] {
       return Stages(Json(), {Split(R"([\r\n])"), Split(R"(\s?\p{L}+)"), Split(R"(\s?\p{P}+)"), Split(kIdeographs),
                              Digits(), Bytes(false)});
     }},
    {"deepseek-v3",
     [] {
       return Stages(Json(),
                     {Split(R"(\p{N}{1,3})"), Split(kDeepseekV3Ideographs), Split(kDeepseekV3Words), Bytes(false)});
     }},
};

}  // namespace

std::optional<GgufStages> StagesOfGguf(absl::string_view pre) {
  for (const auto& [name, make] : kKnown) {
    if (pre == name) return make();
  }
  return std::nullopt;
}

std::string KnownGgufStages() {
  std::string names;
  for (const auto& [name, make] : kKnown) absl::StrAppend(&names, names.empty() ? "" : ", ", name);
  return names;
}

}  // namespace c3po
