#include "server/text/normalizer.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/pattern_field.h"
#include "server/text/regex.h"
#include "server/text/unicode.h"
#include "server/text/utf8.h"

namespace c3po {

class Normalizer::Step {
 public:
  virtual ~Step() = default;
  virtual bool starts_text() const { return false; }      // It only puts something before a text.
  virtual bool is_by_character() const { return false; }  // A text becomes what its characters become.
  // As Normalizer's, of this step alone.
  virtual bool SplitsBefore(char32_t) const { return is_by_character(); }
  virtual absl::Status Apply(std::string* text) const = 0;
};

namespace {

constexpr int kSequenceDepthMax = 8;

class UnicodeForm final : public Normalizer::Step {
 public:
  explicit UnicodeForm(NormalizationForm form) : form_(form) {}
  absl::Status Apply(std::string* text) const override {
    *text = NormalizeUnicode(*text, form_);
    return absl::OkStatus();
  }
  bool SplitsBefore(char32_t c) const override { return StartsNormalization(c, form_); }

 private:
  NormalizationForm form_;
};

class Prepend final : public Normalizer::Step {
 public:
  explicit Prepend(std::string prefix) : prefix_(std::move(prefix)) {}
  absl::Status Apply(std::string* text) const override {
    if (!text->empty()) text->insert(0, prefix_);
    return absl::OkStatus();
  }
  bool starts_text() const override { return true; }
  bool SplitsBefore(char32_t) const override { return true; }

 private:
  std::string prefix_;
};

class Replace final : public Normalizer::Step {
 public:
  // is_by_character: the pattern is one character.
  Replace(Regex pattern, std::string content, bool is_by_character)
      : pattern_(std::move(pattern)), content_(std::move(content)), is_by_character_(is_by_character) {}
  bool is_by_character() const override { return is_by_character_; }
  absl::Status Apply(std::string* text) const override {
    C3PO_ASSIGN_OR_RETURN(*text, ReplaceAll(pattern_, content_, *text));
    return absl::OkStatus();
  }

 private:
  Regex pattern_;
  std::string content_;
  bool is_by_character_;
};

class Lowercase final : public Normalizer::Step {
 public:
  bool is_by_character() const override { return true; }
  absl::Status Apply(std::string* text) const override {
    std::string lower;
    lower.reserve(text->size());
    for (size_t position = 0; position < text->size();) AppendLowercase(NextCodePoint(*text, &position), &lower);
    *text = std::move(lower);
    return absl::OkStatus();
  }
};

// White space taken off either end.
class Strip final : public Normalizer::Step {
 public:
  Strip(bool left, bool right) : left_(left), right_(right) {}
  absl::Status Apply(std::string* text) const override {
    size_t begin = 0;
    size_t end = 0;  // After the last character that is no white space.
    for (size_t position = 0; position < text->size();) {
      const size_t at = position;
      if (IsWhiteSpace(NextCodePoint(*text, &position))) continue;
      if (end == 0) begin = at;
      end = position;
    }
    const bool blank = end == 0;
    if (!right_) end = text->size();
    if (!left_) begin = 0;
    *text = blank && (left_ || right_) ? "" : text->substr(begin, end - begin);
    return absl::OkStatus();
  }

 private:
  bool left_;
  bool right_;
};

// BERT's "basic tokenization" before words are cut.
class BertNormalizer final : public Normalizer::Step {
 public:
  static absl::StatusOr<std::shared_ptr<const Normalizer::Step>> FromJson(const JsonField& json) {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "clean_text", "handle_chinese_chars", "strip_accents", "lowercase"}));
    auto step = std::make_shared<BertNormalizer>();
    C3PO_ASSIGN_OR_RETURN(step->clean_text_, json.BoolMember("clean_text"));
    C3PO_ASSIGN_OR_RETURN(step->isolate_ideographs_, json.BoolMember("handle_chinese_chars"));
    C3PO_ASSIGN_OR_RETURN(step->lowercase_, json.BoolMember("lowercase"));
    C3PO_ASSIGN_OR_RETURN(step->strip_accents_, json.BoolMember("strip_accents", step->lowercase_));
    return std::shared_ptr<const Normalizer::Step>(std::move(step));
  }

  absl::Status Apply(std::string* text) const override {
    std::string clean;
    clean.reserve(text->size());
    for (size_t position = 0; position < text->size();) Clean(NextCodePoint(*text, &position), &clean);
    if (strip_accents_) {
      const std::string decomposed = NormalizeUnicode(clean, NormalizationForm::kNfd);
      clean.clear();
      for (size_t position = 0; position < decomposed.size();) {
        const char32_t c = NextCodePoint(decomposed, &position);
        if (!IsNonspacingMark(c)) AppendCodePoint(c, &clean);
      }
    }
    text->clear();
    if (!lowercase_) {
      *text = std::move(clean);
      return absl::OkStatus();
    }
    for (size_t position = 0; position < clean.size();) AppendLowercase(NextCodePoint(clean, &position), text);
    return absl::OkStatus();
  }

 private:
  // The blocks BERT's authors listed as Chinese: CJK ideographs, not kana or Hangul.
  static bool IsIdeograph(char32_t c) {
    return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) || (c >= 0x20000 && c <= 0x2A6DF) ||
           (c >= 0x2A700 && c <= 0x2B73F) || (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B920 && c <= 0x2CEAF) ||
           (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
  }

  void Clean(char32_t c, std::string* out) const {
    if (clean_text_) {
      if (IsCleanedAway(c)) return;
      if (IsWhiteSpace(c)) c = ' ';
    }
    const bool isolate = isolate_ideographs_ && IsIdeograph(c);
    if (isolate) out->push_back(' ');
    AppendCodePoint(c, out);
    if (isolate) out->push_back(' ');
  }

  bool clean_text_ = true;
  bool isolate_ideographs_ = true;
  bool strip_accents_ = true;
  bool lowercase_ = true;
};

// What a pattern matches that is given as a string; "" for a regular expression.
absl::StatusOr<std::string> LiteralPattern(const JsonField& json) {
  C3PO_ASSIGN_OR_RETURN(const JsonField pattern, json.Member("pattern"));
  return pattern.StringMember("String", "");
}

using Steps = std::vector<std::shared_ptr<const Normalizer::Step>>;

absl::Status AppendSteps(const JsonField& json, int depth, Steps* steps) {
  C3PO_ASSIGN_OR_RETURN(const std::string type, json.StringMember("type"));
  if (type == "Sequence") {
    if (depth == kSequenceDepthMax) return json.Error("sequences nest too deep");
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "normalizers"}));
    C3PO_ASSIGN_OR_RETURN(const JsonField members, json.Member("normalizers"));
    return members.ForEachElement(
        [&](size_t, const JsonField& member) { return AppendSteps(member, depth + 1, steps); });
  }
  const std::pair<const char*, NormalizationForm> forms[] = {{"NFC", NormalizationForm::kNfc},
                                                             {"NFD", NormalizationForm::kNfd},
                                                             {"NFKC", NormalizationForm::kNfkc},
                                                             {"NFKD", NormalizationForm::kNfkd}};
  for (const auto& [name, form] : forms) {
    if (type != name) continue;
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type"}));
    steps->push_back(std::make_shared<UnicodeForm>(form));
    return absl::OkStatus();
  }
  if (type == "Prepend") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "prepend"}));
    C3PO_ASSIGN_OR_RETURN(std::string prefix, json.StringMember("prepend"));
    steps->push_back(std::make_shared<Prepend>(std::move(prefix)));
  } else if (type == "Lowercase") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type"}));
    steps->push_back(std::make_shared<Lowercase>());
  } else if (type == "Strip") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "strip_left", "strip_right"}));
    C3PO_ASSIGN_OR_RETURN(const bool left, json.BoolMember("strip_left"));
    C3PO_ASSIGN_OR_RETURN(const bool right, json.BoolMember("strip_right"));
    steps->push_back(std::make_shared<Strip>(left, right));
  } else if (type == "Replace") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "pattern", "content"}));
    C3PO_ASSIGN_OR_RETURN(Regex pattern, ReadPattern(json));
    C3PO_ASSIGN_OR_RETURN(std::string content, json.StringMember("content"));
    C3PO_ASSIGN_OR_RETURN(const std::string literal, LiteralPattern(json));
    size_t character = 0;
    if (!literal.empty()) NextCodePoint(literal, &character);
    const bool is_by_character = character > 0 && character == literal.size();
    steps->push_back(std::make_shared<Replace>(std::move(pattern), std::move(content), is_by_character));
  } else if (type == "BertNormalizer") {
    C3PO_ASSIGN_OR_RETURN(std::shared_ptr<const Normalizer::Step> step, BertNormalizer::FromJson(json));
    steps->push_back(std::move(step));
  } else {
    return json.Error(absl::StrCat("type \"", type, "\" is not supported"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Normalizer> Normalizer::FromJson(const std::optional<JsonField>& json) {
  Normalizer normalizer;
  if (json.has_value()) C3PO_RETURN_IF_ERROR(AppendSteps(*json, 0, &normalizer.steps_));
  return normalizer;
}

bool Normalizer::SplitsBefore(char32_t c) const {
  std::string begin;  // Of the text from `c` on, as it comes to the step.
  AppendCodePoint(c, &begin);
  bool is_certain = true;  // Else what follows `c` may have changed it.
  for (const auto& step : steps_) {
    if (step->starts_text()) continue;
    if (begin.empty()) return false;
    size_t position = 0;
    if (!(is_certain || step->is_by_character()) || !step->SplitsBefore(NextCodePoint(begin, &position))) return false;
    if (!step->is_by_character()) is_certain = false;
    if (!step->Apply(&begin).ok()) return false;
  }
  return true;
}

absl::Status Normalizer::Normalize(std::string* text, bool continues) const {
  for (const auto& step : steps_) {
    if (!continues || !step->starts_text()) C3PO_RETURN_IF_ERROR(step->Apply(text));
  }
  return absl::OkStatus();
}

}  // namespace c3po
