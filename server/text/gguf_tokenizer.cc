#include "server/text/gguf_tokenizer.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "server/text/gguf_pre_tokenizer.h"
#include "server/text/utf8.h"
#include "server/weights/gguf_file.h"

namespace c3po {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::string_view kPrefix = "tokenizer.ggml.";
constexpr char kTemplate[] = "tokenizer.chat_template", kToolTemplate[] = "tokenizer.chat_template.tool_use";
constexpr char kSpace[] = "\u2581";

constexpr size_t kPieceBytesMax = 1024;  // Of SentencePiece, whose pieces are cut at every character.

// tokenizer.ggml.token_type.
enum TokenType : int64_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

// Keys that change nothing here: other programs' hints, and what config.json or the reader of templates takes.
constexpr absl::string_view kPassedOver[] = {
    "eot_token_id",     "eom_token_id",     "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id",
    "fim_pad_token_id", "fim_rep_token_id", "fim_sep_token_id", "prefix_token_id",  "suffix_token_id",
    "middle_token_id",  "token_type_count", "mask_token_id",    "cls_token_id",
};
// Token ids by the names of tokenizer_config.json. "seperator" is the format's own spelling.
constexpr std::pair<const char*, absl::string_view> kSpecials[] = {
    {"bos_token", "bos_token_id"},       {"eos_token", "eos_token_id"},     {"unk_token", "unknown_token_id"},
    {"sep_token", "seperator_token_id"}, {"pad_token", "padding_token_id"}, {"cls_token", "cls_token_id"},
    {"mask_token", "mask_token_id"},
};

class Reader {
 public:
  explicit Reader(const GgufFile& file) : file_(file) {}

  absl::StatusOr<GgufTokenizer> Read() {
    C3PO_RETURN_IF_ERROR(CheckKeys());
    C3PO_RETURN_IF_ERROR(ReadPieces());
    C3PO_ASSIGN_OR_RETURN(const std::string model, Text("model"));
    Json root = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}, {"added_tokens", AddedTokens()}};
    bool begins = false;
    if (model == "gpt2") {
      C3PO_RETURN_IF_ERROR(AddByteLevel(root, &begins));
    } else if (model == "llama") {
      C3PO_RETURN_IF_ERROR(AddSentencePiece(root));
      begins = true;
    } else {
      return Unsupported("model", absl::StrCat(Quoted(model), " is not supported; supported are gpt2, llama"));
    }
    C3PO_RETURN_IF_ERROR(AddSurroundings(begins, root));
    C3PO_ASSIGN_OR_RETURN(const Json config, Config());
    return GgufTokenizer{root.dump(), config.dump()};
  }

 private:
  absl::Status Invalid(absl::string_view name, absl::string_view what) const {
    return absl::InvalidArgumentError(
        absl::StrCat(file_.path(), ": key ", Quoted(absl::StrCat(kPrefix, name)), " ", what));
  }
  absl::Status Unsupported(absl::string_view name, absl::string_view what) const {
    return absl::UnimplementedError(
        absl::StrCat(file_.path(), ": key ", Quoted(absl::StrCat(kPrefix, name)), " ", what));
  }
  const GgufValue* Find(absl::string_view name) const { return file_.Find(absl::StrCat(kPrefix, name)); }

  absl::StatusOr<std::string> Text(absl::string_view name) const {
    const GgufValue* const value = Find(name);
    const std::optional<absl::string_view> text = value == nullptr ? std::nullopt : value->Text();
    if (!text) return Invalid(name, value == nullptr ? "is missing" : "must be a string");
    return std::string(*text);
  }
  absl::StatusOr<bool> FlagOr(absl::string_view name, bool fallback) const {
    const GgufValue* const value = Find(name);
    if (value == nullptr) return fallback;
    if (const std::optional<bool> flag = value->Bool()) return *flag;
    return Invalid(name, "must be a boolean");
  }
  // nullopt: no such key.
  absl::StatusOr<std::optional<size_t>> TokenId(absl::string_view name) const {
    const GgufValue* const value = Find(name);
    if (value == nullptr) return std::nullopt;
    const std::optional<int64_t> id = value->Integer();
    if (!id || *id < 0 || *id >= static_cast<int64_t>(tokens_.size())) {
      return Invalid(name, absl::StrCat("must be the id of one of ", tokens_.size(), " tokens"));
    }
    return std::optional<size_t>(static_cast<size_t>(*id));
  }

  absl::Status CheckKeys() const {
    constexpr absl::string_view kRead[] = {"model",
                                           "pre",
                                           "tokens",
                                           "token_type",
                                           "merges",
                                           "scores",
                                           "add_bos_token",
                                           "add_eos_token",
                                           "add_sep_token",
                                           "add_space_prefix",
                                           "remove_extra_whitespaces"};
    for (const auto& [key, value] : file_.metadata()) {
      absl::string_view name = key;
      if (!absl::ConsumePrefix(&name, "tokenizer.")) continue;
      if (absl::StartsWith(name, "chat_template") || name == "huggingface.json") continue;
      const bool known = absl::ConsumePrefix(&name, "ggml.") &&
                         (std::find(std::begin(kRead), std::end(kRead), name) != std::end(kRead) ||
                          std::find(std::begin(kPassedOver), std::end(kPassedOver), name) != std::end(kPassedOver) ||
                          std::any_of(std::begin(kSpecials), std::end(kSpecials),
                                      [name](const auto& row) { return row.second == name; }));
      if (!known)
        return absl::UnimplementedError(absl::StrCat(file_.path(), ": key ", Quoted(key), " is not supported"));
    }
    for (const char* name : {"add_sep_token", "remove_extra_whitespaces"}) {
      C3PO_ASSIGN_OR_RETURN(const bool set, FlagOr(name, false));
      if (set) return Unsupported(name, "true is not supported");
    }
    return absl::OkStatus();
  }

  absl::Status ReadPieces() {
    const GgufValue* const tokens = Find("tokens");
    std::optional<std::vector<absl::string_view>> texts = tokens == nullptr ? std::nullopt : tokens->Texts();
    if (!texts) return Invalid("tokens", tokens == nullptr ? "is missing" : "must be a list of strings");
    tokens_ = *std::move(texts);
    types_.assign(tokens_.size(), kNormal);
    if (const GgufValue* const types = Find("token_type"); types != nullptr) {
      std::optional<std::vector<int64_t>> integers = types->Integers();
      if (!integers || integers->size() != tokens_.size()) {
        return Invalid("token_type", absl::StrCat("must be a list of ", tokens_.size(), " integers"));
      }
      types_ = *std::move(integers);
    }
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (types_[id] < kNormal || types_[id] > kByte) {
        return Unsupported("token_type", absl::StrCat("has ", types_[id], ", which is not supported"));
      }
      if (types_[id] == kUnused) continue;
      if (!IsValidUtf8(tokens_[id])) return Invalid("tokens", absl::StrCat("is not valid UTF-8 at ", id));
      if (!ids_.emplace(tokens_[id], id).second) {
        return Invalid("tokens", absl::StrCat("has ", Quoted(tokens_[id]), " twice"));
      }
    }
    return absl::OkStatus();
  }

  Json AddedTokens() const {
    Json added = Json::array();
    for (size_t id = 0; id < tokens_.size(); ++id) {
      const bool special = types_[id] == kControl || types_[id] == kUnknown;
      if ((!special && types_[id] != kUserDefined) || tokens_[id].empty()) continue;
      added.push_back({{"id", id},
                       {"content", std::string(tokens_[id])},
                       {"single_word", false},
                       {"lstrip", false},
                       {"rstrip", false},
                       {"normalized", false},
                       {"special", special}});
    }
    return added;
  }

  Json Vocabulary() const {
    Json vocabulary = Json::object();
    // Not by operator[], which looks through all of an ordered object.
    auto& entries = vocabulary.get_ref<Json::object_t&>();
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (types_[id] != kUnused) entries.emplace_back(std::string(tokens_[id]), id);
    }
    return vocabulary;
  }

  absl::Status AddByteLevel(Json& root, bool* begins) const {
    C3PO_ASSIGN_OR_RETURN(const std::string pre, Text("pre"));
    const std::optional<GgufStages> stages = StagesOfGguf(pre);
    if (!stages) {
      return Unsupported("pre", absl::StrCat(Quoted(pre), " is not supported; supported are ", KnownGgufStages()));
    }
    *begins = stages->begins;
    Json merges = Json::array();
    if (const GgufValue* const value = Find("merges"); value != nullptr) {
      const std::optional<std::vector<absl::string_view>> texts = value->Texts();
      if (!texts) return Invalid("merges", "must be a list of strings");
      for (const absl::string_view text : *texts) {
        if (!IsValidUtf8(text)) return Invalid("merges", "is not valid UTF-8");
        merges.push_back(std::string(text));
      }
    }
    root["normalizer"] = Json::parse(stages->normalizer);
    root["pre_tokenizer"] = Json::parse(stages->pre_tokenizer);
    root["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", true}, {"trim_offsets", true}, {"use_regex", true}};
    root["model"] = {{"type", "BPE"},          {"fuse_unk", false},
                     {"byte_fallback", false}, {"ignore_merges", stages->ignore_merges},
                     {"vocab", Vocabulary()},  {"merges", std::move(merges)}};
    return absl::OkStatus();
  }

  // As transformers' generate_merges: for each piece its splits into two pieces, in the order of their ids; all of them
  // by score, then by the lengths of the two in characters, the largest first.
  absl::StatusOr<Json> MergesByScore() const {
    const GgufValue* const value = Find("scores");
    const std::optional<std::vector<float>> scores = value == nullptr ? std::nullopt : value->Floats();
    if (!scores || scores->size() != tokens_.size()) {
      return Invalid("scores", absl::StrCat("must be a list of ", tokens_.size(), " float32 numbers"));
    }
    if (!std::all_of(scores->begin(), scores->end(), [](float score) { return std::isfinite(score); })) {
      return Invalid("scores", "must be finite");
    }
    struct Merge {
      float score;
      size_t left_length, right_length, left, right;
    };
    std::vector<Merge> merges;
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (types_[id] == kUnused) continue;
      const absl::string_view piece = tokens_[id];
      if (piece.size() > kPieceBytesMax) {
        return Invalid(
            "tokens", absl::StrCat("has ", piece.size(), " bytes at ", id, ", at most ", kPieceBytesMax, " are taken"));
      }
      const size_t first = merges.size(), length = Characters(piece);
      size_t left_length = 0;
      for (size_t at = 0; at < piece.size();) {
        NextCodePoint(piece, &at);
        ++left_length;
        const auto left = ids_.find(piece.substr(0, at)), right = ids_.find(piece.substr(at));
        if (at == piece.size() || left == ids_.end() || right == ids_.end()) continue;
        merges.push_back({(*scores)[id], left_length, length - left_length, left->second, right->second});
      }
      std::sort(merges.begin() + static_cast<std::ptrdiff_t>(first), merges.end(),
                [](const Merge& a, const Merge& b) { return std::tie(a.left, a.right) < std::tie(b.left, b.right); });
    }
    const auto lower = [](const Merge& a, const Merge& b) {
      return std::tie(a.score, a.left_length, a.right_length) < std::tie(b.score, b.left_length, b.right_length);
    };
    std::stable_sort(merges.begin(), merges.end(), [lower](const Merge& a, const Merge& b) { return lower(b, a); });
    if (merges.size() > 1 && merges.front().score == merges.back().score) {
      return Invalid("scores", "are all the same: the order of merges is lost");
    }
    Json list = Json::array();
    for (const Merge& merge : merges) {
      list.push_back({std::string(tokens_[merge.left]), std::string(tokens_[merge.right])});
    }
    return list;
  }

  static size_t Characters(absl::string_view text) {
    size_t count = 0;
    for (size_t at = 0; at < text.size(); ++count) NextCodePoint(text, &at);
    return count;
  }

  absl::Status AddSentencePiece(Json& root) const {
    C3PO_ASSIGN_OR_RETURN(Json merges, MergesByScore());
    C3PO_ASSIGN_OR_RETURN(const bool prefix, FlagOr("add_space_prefix", true));
    Json steps = Json::array();
    if (prefix) steps.push_back({{"type", "Prepend"}, {"prepend", kSpace}});
    steps.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpace}});
    root["normalizer"] = {{"type", "Sequence"}, {"normalizers", std::move(steps)}};
    root["pre_tokenizer"] = nullptr;
    Json decoders = Json::array();
    decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", kSpace}}}, {"content", " "}});
    decoders.push_back(Json::object({{"type", "ByteFallback"}}));
    decoders.push_back(Json::object({{"type", "Fuse"}}));
    if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    root["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
    root["model"] = {{"type", "BPE"},          {"fuse_unk", true},      {"byte_fallback", true},
                     {"ignore_merges", false}, {"vocab", Vocabulary()}, {"merges", std::move(merges)}};
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (types_[id] == kUnknown) root["model"]["unk_token"] = std::string(tokens_[id]);
    }
    return absl::OkStatus();
  }

  absl::Status AddSurroundings(bool begins, Json& root) const {
    C3PO_ASSIGN_OR_RETURN(const bool add_begin, FlagOr("add_bos_token", begins));
    C3PO_ASSIGN_OR_RETURN(const bool add_end, FlagOr("add_eos_token", false));
    root["post_processor"] = nullptr;
    if (!add_begin && !add_end) return absl::OkStatus();
    Json single = Json::array(), specials = Json::object();
    const auto add = [&](absl::string_view name) -> absl::Status {
      C3PO_ASSIGN_OR_RETURN(const std::optional<size_t> id, TokenId(name));
      if (!id || types_[*id] == kUnused) {
        return Invalid(name, "must be a token in use: texts have it around them");
      }
      const std::string text(tokens_[*id]);
      single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
      specials[text] = {{"id", text}, {"ids", {*id}}, {"tokens", {text}}};
      return absl::OkStatus();
    };
    if (add_begin) C3PO_RETURN_IF_ERROR(add("bos_token_id"));
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    if (add_end) C3PO_RETURN_IF_ERROR(add("eos_token_id"));
    Json pair = Json::array();
    pair.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
    root["post_processor"] = {{"type", "TemplateProcessing"},
                              {"single", std::move(single)},
                              {"pair", std::move(pair)},
                              {"special_tokens", std::move(specials)}};
    return absl::OkStatus();
  }

  absl::StatusOr<Json> Config() const {
    Json config = Json::object();
    for (const auto& [field, name] : kSpecials) {
      C3PO_ASSIGN_OR_RETURN(const std::optional<size_t> id, TokenId(name));
      if (id && types_[*id] != kUnused) config[field] = std::string(tokens_[*id]);
    }
    Json templates = Json::array();
    for (const auto& [key, name] : {std::pair{kTemplate, "default"}, std::pair{kToolTemplate, "tool_use"}}) {
      const GgufValue* const value = file_.Find(key);
      if (value == nullptr) continue;
      const std::optional<absl::string_view> text = value->Text();
      if (!text || !IsValidUtf8(*text)) {
        return absl::InvalidArgumentError(
            absl::StrCat(file_.path(), ": key ", Quoted(key), " must be a string of UTF-8"));
      }
      templates.push_back({{"name", name}, {"template", std::string(*text)}});
    }
    if (!templates.empty()) config["chat_template"] = std::move(templates);
    return config;
  }

  const GgufFile& file_;
  std::vector<absl::string_view> tokens_;
  std::vector<int64_t> types_;
  absl::flat_hash_map<absl::string_view, size_t> ids_;  // Of tokens that are used.
};

}  // namespace

absl::StatusOr<GgufTokenizer> ReadGgufTokenizer(const std::string& path) {
  C3PO_ASSIGN_OR_RETURN(const std::unique_ptr<GgufFile> file, GgufFile::Open(path));
  return Reader(*file).Read();
}

}  // namespace c3po
