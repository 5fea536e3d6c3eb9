#include "server/text/pre_tokenizer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/byte_level.h"
#include "server/text/metaspace.h"
#include "server/text/pattern_field.h"
#include "server/text/regex.h"
#include "server/text/unicode.h"
#include "server/text/utf8.h"

namespace c3po {

class PreTokenizer::Step {
 public:
  virtual ~Step() = default;
  // Appends the parts of `segment` (not empty) to *parts; empty parts are dropped by the caller.
  virtual absl::Status Split(TextSegment segment, std::vector<TextSegment>* parts) const = 0;
};

namespace {

constexpr int kSequenceDepthMax = 8;

// What becomes of the stretches that a delimiter pattern matches.
enum class DelimiterBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

// Text cut at matches: the stretches cover it without gaps.
struct Stretch {
  TextRange range;
  bool is_match;
};

std::vector<Stretch> CutAtMatches(const std::vector<TextRange>& matches, size_t text_size) {
  std::vector<Stretch> stretches;
  stretches.reserve(matches.size() * 2 + 1);
  size_t end = 0;
  for (const TextRange& match : matches) {
    if (match.begin != end) stretches.push_back({{end, match.begin}, false});
    stretches.push_back({match, true});
    end = match.end;
  }
  if (end != text_size) stretches.push_back({{end, text_size}, false});
  return stretches;
}

std::vector<TextRange> ApplyBehavior(std::vector<Stretch> stretches, DelimiterBehavior behavior) {
  std::vector<TextRange> parts;
  bool previous_match = false;
  switch (behavior) {
    case DelimiterBehavior::kRemoved:
      for (const Stretch& stretch : stretches) {
        if (!stretch.is_match) parts.push_back(stretch.range);
      }
      break;
    case DelimiterBehavior::kIsolated:
      for (const Stretch& stretch : stretches) parts.push_back(stretch.range);
      break;
    case DelimiterBehavior::kContiguous:
    case DelimiterBehavior::kMergedWithPrevious:
      for (const Stretch& stretch : stretches) {
        const bool joins = behavior == DelimiterBehavior::kContiguous ? stretch.is_match == previous_match
                                                                      : stretch.is_match && !previous_match;
        if (joins && !parts.empty()) {
          parts.back().end = stretch.range.end;
        } else {
          parts.push_back(stretch.range);
        }
        previous_match = stretch.is_match;
      }
      break;
    case DelimiterBehavior::kMergedWithNext:
      for (auto stretch = stretches.rbegin(); stretch != stretches.rend(); ++stretch) {
        if (stretch->is_match && !previous_match && !parts.empty()) {
          parts.back().begin = stretch->range.begin;
        } else {
          parts.push_back(stretch->range);
        }
        previous_match = stretch->is_match;
      }
      std::reverse(parts.begin(), parts.end());
      break;
  }
  return parts;
}

void AppendParts(const TextSegment& segment, const std::vector<TextRange>& ranges, std::vector<TextSegment>* parts) {
  for (const TextRange& range : ranges) {
    const bool first = range.begin == 0;
    parts->push_back({segment.text.substr(range.begin, range.end - range.begin), segment.starts_input && first,
                      segment.continues && first});
  }
}

// Each character for which `matches` holds is a match of its own.
template <typename Predicate>
void SplitByCharacter(const TextSegment& segment, DelimiterBehavior behavior, Predicate matches,
                      std::vector<TextSegment>* parts) {
  std::vector<TextRange> found;
  for (size_t position = 0; position < segment.text.size();) {
    const size_t begin = position;
    if (matches(NextCodePoint(segment.text, &position))) found.push_back({begin, position});
  }
  AppendParts(segment, ApplyBehavior(CutAtMatches(found, segment.text.size()), behavior), parts);
}

class SplitPattern final : public PreTokenizer::Step {
 public:
  SplitPattern(Regex pattern, DelimiterBehavior behavior, bool invert)
      : pattern_(std::move(pattern)), behavior_(behavior), invert_(invert) {}

  absl::Status Split(TextSegment segment, std::vector<TextSegment>* parts) const override {
    C3PO_ASSIGN_OR_RETURN(const std::vector<TextRange> matches, pattern_.FindAll(segment.text));
    std::vector<Stretch> stretches = CutAtMatches(matches, segment.text.size());
    for (Stretch& stretch : stretches) stretch.is_match ^= invert_;
    AppendParts(segment, ApplyBehavior(std::move(stretches), behavior_), parts);
    return absl::OkStatus();
  }

 private:
  Regex pattern_;
  DelimiterBehavior behavior_;
  bool invert_;  // The pattern matches words, not delimiters.
};

class ByteLevel final : public PreTokenizer::Step {
 public:
  // GPT-2's pattern for words, as its authors released it. `pattern` absent: no cutting.
  ByteLevel(bool add_prefix_space, std::optional<Regex> pattern)
      : add_prefix_space_(add_prefix_space), pattern_(std::move(pattern)) {}

  static constexpr absl::string_view kWordPattern =
      R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

  absl::Status Split(TextSegment segment, std::vector<TextSegment>* parts) const override {
    if (add_prefix_space_ && !segment.continues && segment.text.front() != ' ') segment.text.insert(0, 1, ' ');
    const size_t first_new = parts->size();
    if (pattern_.has_value()) {
      C3PO_ASSIGN_OR_RETURN(const std::vector<TextRange> words, pattern_->FindAll(segment.text));
      AppendParts(segment, ApplyBehavior(CutAtMatches(words, segment.text.size()), DelimiterBehavior::kIsolated),
                  parts);
    } else {
      parts->push_back(std::move(segment));
    }
    for (size_t i = first_new; i < parts->size(); ++i) (*parts)[i].text = BytesToAlphabet((*parts)[i].text);
    return absl::OkStatus();
  }

 private:
  bool add_prefix_space_;
  std::optional<Regex> pattern_;
};

class Digits final : public PreTokenizer::Step {
 public:
  explicit Digits(bool individual)
      : behavior_(individual ? DelimiterBehavior::kIsolated : DelimiterBehavior::kContiguous) {}

  absl::Status Split(TextSegment segment, std::vector<TextSegment>* parts) const override {
    SplitByCharacter(segment, behavior_, IsNumeric, parts);
    return absl::OkStatus();
  }

 private:
  DelimiterBehavior behavior_;
};

class Metaspace final : public PreTokenizer::Step {
 public:
  explicit Metaspace(MetaspaceOptions options) : options_(std::move(options)) {}

  absl::Status Split(TextSegment segment, std::vector<TextSegment>* parts) const override {
    std::string marked;
    marked.reserve(segment.text.size());
    for (const char c : segment.text) c == ' ' ? marked.append(options_.mark) : marked.append(1, c);
    const bool prepend = options_.prepend == MetaspaceOptions::Prepend::kAlways ||
                         (options_.prepend == MetaspaceOptions::Prepend::kFirst && segment.starts_input);
    if (prepend && !segment.continues && !absl::StartsWith(marked, options_.mark)) marked.insert(0, options_.mark);
    segment.text = std::move(marked);
    if (!options_.split) {
      parts->push_back(std::move(segment));
      return absl::OkStatus();
    }
    size_t position = 0;
    const char32_t mark = NextCodePoint(options_.mark, &position);
    SplitByCharacter(
        segment, DelimiterBehavior::kMergedWithNext, [mark](char32_t c) { return c == mark; }, parts);
    return absl::OkStatus();
  }

 private:
  MetaspaceOptions options_;
};

class BertPreTokenizer final : public PreTokenizer::Step {
 public:
  absl::Status Split(TextSegment segment, std::vector<TextSegment>* parts) const override {
    std::vector<TextSegment> words;
    SplitByCharacter(segment, DelimiterBehavior::kRemoved, IsWhiteSpace, &words);
    for (const TextSegment& word : words) SplitByCharacter(word, DelimiterBehavior::kIsolated, IsPunctuation, parts);
    return absl::OkStatus();
  }
};

class Punctuation final : public PreTokenizer::Step {
 public:
  explicit Punctuation(DelimiterBehavior behavior) : behavior_(behavior) {}

  absl::Status Split(TextSegment segment, std::vector<TextSegment>* parts) const override {
    SplitByCharacter(segment, behavior_, IsPunctuation, parts);
    return absl::OkStatus();
  }

 private:
  DelimiterBehavior behavior_;
};

// Cuts at white space, which is dropped; Whitespace also cuts between word characters and others.
class Whitespace final : public PreTokenizer::Step {
 public:
  explicit Whitespace(bool cuts_at_words) : cuts_at_words_(cuts_at_words) {}

  absl::Status Split(TextSegment segment, std::vector<TextSegment>* parts) const override {
    enum class Kind { kSpace, kWord, kOther };
    std::vector<TextRange> words;
    Kind previous = Kind::kSpace;
    for (size_t position = 0; position < segment.text.size();) {
      const size_t begin = position;
      const char32_t c = NextCodePoint(segment.text, &position);
      const Kind kind = IsWhiteSpace(c)                          ? Kind::kSpace
                        : !cuts_at_words_ || !IsWordCharacter(c) ? Kind::kOther
                                                                 : Kind::kWord;
      if (kind != Kind::kSpace && kind == previous) {
        words.back().end = position;
      } else if (kind != Kind::kSpace) {
        words.push_back({begin, position});
      }
      previous = kind;
    }
    AppendParts(segment, words, parts);
    return absl::OkStatus();
  }

 private:
  bool cuts_at_words_;
};

absl::StatusOr<DelimiterBehavior> ReadBehavior(const JsonField& json) {
  C3PO_ASSIGN_OR_RETURN(const JsonField field, json.Member("behavior"));
  C3PO_ASSIGN_OR_RETURN(const std::string name, field.AsString());
  const std::pair<const char*, DelimiterBehavior> behaviors[] = {
      {"Removed", DelimiterBehavior::kRemoved},
      {"Isolated", DelimiterBehavior::kIsolated},
      {"MergedWithPrevious", DelimiterBehavior::kMergedWithPrevious},
      {"MergedWithNext", DelimiterBehavior::kMergedWithNext},
      {"Contiguous", DelimiterBehavior::kContiguous}};
  for (const auto& [known_name, behavior] : behaviors) {
    if (name == known_name) return behavior;
  }
  return field.Error(absl::StrCat("\"", name, "\" is no split behavior"));
}

using StepPtr = std::shared_ptr<const PreTokenizer::Step>;

absl::StatusOr<StepPtr> ReadStep(const JsonField& json, absl::string_view type) {
  if (type == "ByteLevel") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "add_prefix_space", "trim_offsets", "use_regex"}));
    C3PO_ASSIGN_OR_RETURN(const bool add_prefix_space, json.BoolMember("add_prefix_space"));
    C3PO_ASSIGN_OR_RETURN(const bool use_regex, json.BoolMember("use_regex", true));
    std::optional<Regex> pattern;
    if (use_regex) {
      C3PO_ASSIGN_OR_RETURN(pattern, Regex::Compile(ByteLevel::kWordPattern));
    }
    return StepPtr(std::make_shared<ByteLevel>(add_prefix_space, std::move(pattern)));
  }
  if (type == "Digits") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "individual_digits"}));
    C3PO_ASSIGN_OR_RETURN(const bool individual, json.BoolMember("individual_digits"));
    return StepPtr(std::make_shared<Digits>(individual));
  }
  if (type == "Split") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "pattern", "behavior", "invert"}));
    C3PO_ASSIGN_OR_RETURN(Regex pattern, ReadPattern(json));
    C3PO_ASSIGN_OR_RETURN(const DelimiterBehavior behavior, ReadBehavior(json));
    C3PO_ASSIGN_OR_RETURN(const bool invert, json.BoolMember("invert"));
    return StepPtr(std::make_shared<SplitPattern>(std::move(pattern), behavior, invert));
  }
  if (type == "Metaspace") {
    C3PO_ASSIGN_OR_RETURN(MetaspaceOptions options, MetaspaceOptions::FromJson(json));
    return StepPtr(std::make_shared<Metaspace>(std::move(options)));
  }
  if (type == "Punctuation") {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "behavior"}));
    DelimiterBehavior behavior = DelimiterBehavior::kIsolated;
    if (json.Find("behavior").has_value()) {
      C3PO_ASSIGN_OR_RETURN(behavior, ReadBehavior(json));
    }
    return StepPtr(std::make_shared<Punctuation>(behavior));
  }
  StepPtr plain;
  if (type == "Whitespace") plain = std::make_shared<Whitespace>(/*cuts_at_words=*/true);
  if (type == "WhitespaceSplit") plain = std::make_shared<Whitespace>(/*cuts_at_words=*/false);
  if (type == "BertPreTokenizer") plain = std::make_shared<BertPreTokenizer>();
  if (plain != nullptr) {
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type"}));
    return plain;
  }
  return json.Error(absl::StrCat("type \"", type, "\" is not supported"));
}

absl::Status AppendSteps(const JsonField& json, int depth, std::vector<StepPtr>* steps) {
  const absl::StatusOr<std::string> type = json.StringMember("type");
  if (!type.ok()) return type.status();
  if (*type == "Sequence") {
    if (depth == kSequenceDepthMax) return json.Error("sequences nest too deep");
    C3PO_RETURN_IF_ERROR(json.ExpectOnly({"type", "pretokenizers"}));
    C3PO_ASSIGN_OR_RETURN(const JsonField members, json.Member("pretokenizers"));
    return members.ForEachElement(
        [&](size_t, const JsonField& member) { return AppendSteps(member, depth + 1, steps); });
  }
  C3PO_ASSIGN_OR_RETURN(StepPtr step, ReadStep(json, *type));
  steps->push_back(std::move(step));
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::FromJson(const std::optional<JsonField>& json) {
  PreTokenizer pre_tokenizer;
  if (json.has_value()) C3PO_RETURN_IF_ERROR(AppendSteps(*json, 0, &pre_tokenizer.steps_));
  return pre_tokenizer;
}

absl::StatusOr<std::vector<TextSegment>> PreTokenizer::Split(TextSegment segment) const {
  std::vector<TextSegment> segments;
  if (!segment.text.empty()) segments.push_back(std::move(segment));
  for (const StepPtr& step : steps_) {
    std::vector<TextSegment> parts;
    parts.reserve(segments.size());
    for (TextSegment& whole : segments) C3PO_RETURN_IF_ERROR(step->Split(std::move(whole), &parts));
    parts.erase(std::remove_if(parts.begin(), parts.end(), [](const TextSegment& part) { return part.text.empty(); }),
                parts.end());
    segments = std::move(parts);
  }
  return segments;
}

}  // namespace c3po
