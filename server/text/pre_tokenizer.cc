#include "server/text/pre_tokenizer.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "server/text/byte_level.h"
#include "server/text/delimiter.h"
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
  // The same for a segment of which only the beginning is known (not empty).
  virtual absl::Status Narrow(OpenText* open) const = 0;
  // It puts something before each segment that is not the middle of a text.
  virtual bool puts_prefix() const { return false; }
};

namespace {

constexpr int kSequenceDepthMax = 8;

void AppendParts(const TextSegment& segment, const std::vector<TextRange>& ranges, std::vector<TextSegment>* parts) {
  for (const TextRange& range : ranges) {
    const bool first = range.begin == 0;
    parts->push_back({segment.text.substr(range.begin, range.end - range.begin), segment.starts_input && first,
                      segment.continues && first});
  }
}

// Each character for which `matches` holds is a match of its own.
template <typename Predicate>
std::vector<TextRange> RangesByCharacter(absl::string_view text, DelimiterBehavior behavior, Predicate matches) {
  std::vector<TextRange> found;
  for (size_t position = 0; position < text.size();) {
    const size_t begin = position;
    if (matches(NextCodePoint(text, &position))) found.push_back({begin, position});
  }
  return ApplyBehavior(CutAtMatches(found, text.size()), behavior);
}

template <typename Predicate>
void SplitByCharacter(const TextSegment& segment, DelimiterBehavior behavior, Predicate matches,
                      std::vector<TextSegment>* parts) {
  AppendParts(segment, RangesByCharacter(segment.text, behavior, matches), parts);
}

// Whether there is a cut at a place depends on the characters on its two sides alone, whatever the behavior, so that
// all cuts within the known text are sure, and the step restarts everywhere.
template <typename Predicate>
void NarrowByCharacter(DelimiterBehavior behavior, Predicate matches, OpenText* open) {
  open->Narrow(RangesByCharacter(open->text, behavior, matches), {}, open->text.size());
}

// Whether there is a cut at an end of a match or of what lies between two depends on what stretches are on its two
// sides alone, whatever the behavior. These are sure before the place where the next match may begin, and the step
// restarts at every place in no match (Regex::restarts).
absl::Status NarrowByPattern(const Regex& pattern, DelimiterBehavior behavior, bool invert, OpenText* open) {
  if (!pattern.restarts()) {
    open->Close();
    return absl::OkStatus();
  }
  C3PO_ASSIGN_OR_RETURN(const Regex::SureMatches found, pattern.FindSure(open->text));
  std::vector<Stretch> stretches = CutAtMatches(found.matches, open->text.size());
  for (Stretch& stretch : stretches) stretch.is_match ^= invert;
  open->Narrow(ApplyBehavior(std::move(stretches), behavior), found.matches, found.sure);
  return absl::OkStatus();
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
  absl::Status Narrow(OpenText* open) const override { return NarrowByPattern(pattern_, behavior_, invert_, open); }

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
  absl::Status Narrow(OpenText* open) const override {
    if (add_prefix_space_ && !open->continues && open->text.front() != ' ') open->Insert(" ");
    if (pattern_.has_value()) {
      C3PO_RETURN_IF_ERROR(NarrowByPattern(*pattern_, DelimiterBehavior::kIsolated, /*invert=*/false, open));
    }
    open->Rewrite([](char byte) { return BytesToAlphabet(absl::string_view(&byte, 1)); });
    return absl::OkStatus();
  }
  bool puts_prefix() const override { return add_prefix_space_; }

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
  absl::Status Narrow(OpenText* open) const override {
    NarrowByCharacter(behavior_, IsNumeric, open);
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
    SplitByCharacter(segment, DelimiterBehavior::kMergedWithNext, IsMark(), parts);
    return absl::OkStatus();
  }
  absl::Status Narrow(OpenText* open) const override {
    open->Rewrite([this](char c) { return c == ' ' ? options_.mark : std::string(1, c); });
    const bool prepend = options_.prepend == MetaspaceOptions::Prepend::kAlways ||
                         (options_.prepend == MetaspaceOptions::Prepend::kFirst && open->starts_input);
    if (prepend && !open->continues && !absl::StartsWith(open->text, options_.mark)) open->Insert(options_.mark);
    if (options_.split) NarrowByCharacter(DelimiterBehavior::kMergedWithNext, IsMark(), open);
    return absl::OkStatus();
  }
  // With "first" only the segment that starts the input, and no cut lies before it.
  bool puts_prefix() const override { return options_.prepend == MetaspaceOptions::Prepend::kAlways; }

 private:
  std::function<bool(char32_t)> IsMark() const {
    size_t position = 0;
    return [mark = NextCodePoint(options_.mark, &position)](char32_t c) { return c == mark; };
  }

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
  absl::Status Narrow(OpenText* open) const override {
    NarrowByCharacter(DelimiterBehavior::kRemoved, IsWhiteSpace, open);
    NarrowByCharacter(DelimiterBehavior::kIsolated, IsPunctuation, open);
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
  absl::Status Narrow(OpenText* open) const override {
    NarrowByCharacter(behavior_, IsPunctuation, open);
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
    AppendParts(segment, Words(segment.text), parts);
    return absl::OkStatus();
  }
  // As NarrowByCharacter.
  absl::Status Narrow(OpenText* open) const override {
    open->Narrow(Words(open->text), {}, open->text.size());
    return absl::OkStatus();
  }

 private:
  std::vector<TextRange> Words(absl::string_view text) const {
    enum class Kind { kSpace, kWord, kOther };
    std::vector<TextRange> words;
    Kind previous = Kind::kSpace;
    for (size_t position = 0; position < text.size();) {
      const size_t begin = position;
      const char32_t c = NextCodePoint(text, &position);
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
    return words;
  }

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

absl::Status PreTokenizer::Narrow(OpenText* open) const {
  for (const StepPtr& step : steps_) {
    if (step->puts_prefix()) open->MeetPrefix();
    if (!open->text.empty()) C3PO_RETURN_IF_ERROR(step->Narrow(open));
  }
  return absl::OkStatus();
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
