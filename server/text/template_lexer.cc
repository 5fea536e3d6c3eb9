#include "server/text/template_lexer.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

bool IsNameCharacter(char c) { return absl::ascii_isalnum(c) || c == '_'; }

class Lexer {
 public:
  explicit Lexer(absl::string_view source) : in_(source) {
    if (!absl::ConsumeSuffix(&in_, "\r\n")) absl::ConsumeSuffix(&in_, "\n");  // As Jinja drops the last line feed.
  }

  absl::StatusOr<std::vector<TemplateTag>> Run() {
    while (at_ < in_.size()) {
      size_t open = at_;
      while (open < in_.size() &&
             !(in_[open] == '{' && open + 1 < in_.size() && absl::StrContains("{%#", in_.substr(open + 1, 1)))) {
        ++open;
      }
      Text(open);
      at_ = open;
      if (open < in_.size()) C3PO_RETURN_IF_ERROR(ReadTag());
    }
    return std::move(tags_);
  }

 private:
  // The text from at_ to the tag at `open` (or the end), less what white space control takes off it.
  void Text(size_t open) {
    absl::string_view text = in_.substr(at_, open - at_);
    if (after_ == After::kStrip) text = absl::StripLeadingAsciiWhitespace(text);
    if (after_ == After::kLineFeed && !absl::ConsumePrefix(&text, "\r\n")) absl::ConsumePrefix(&text, "\n");
    if (open < in_.size()) {
      const char mark = open + 2 < in_.size() ? in_[open + 2] : '\0';
      if (mark == '-') {
        text = absl::StripTrailingAsciiWhitespace(text);
      } else if (in_[open + 1] != '{' && mark != '+') {
        size_t end = text.size();
        while (end > 0 && (text[end - 1] == ' ' || text[end - 1] == '\t')) --end;
        const bool line_start =
            end > 0 ? text[end - 1] == '\n' : at_ == 0 || in_[at_ - 1] == '\n' || took_line_feed(text);
        if (line_start) text = text.substr(0, end);
      }
    }
    if (!text.empty()) tags_.push_back({true, {{TemplateToken::Kind::kString, std::string(text)}}});
  }

  // The line feed right before `text` was taken off by the tag before.
  bool took_line_feed(absl::string_view text) const { return text.data() > in_.data() && *(text.data() - 1) == '\n'; }

  absl::Status ReadTag() {
    const char kind = in_[at_ + 1];
    at_ += 2;
    if (at_ < in_.size() && (in_[at_] == '-' || in_[at_] == '+')) ++at_;
    if (kind == '#') {
      const size_t close = in_.find("#}", at_);
      if (close == absl::string_view::npos) return absl::InvalidArgumentError("has a comment without end");
      after_ = close > 0 && in_[close - 1] == '-' ? After::kStrip : After::kLineFeed;
      at_ = close + 2;
      return absl::OkStatus();
    }
    const absl::string_view end = kind == '{' ? "}}" : "%}";
    TemplateTag tag{kind == '{', {}};
    int braces = 0;  // Of a dictionary, which may stand before the tag's own.
    while (at_ < in_.size()) {
      const absl::string_view rest = in_.substr(at_);
      const bool dash = rest[0] == '-' && absl::StartsWith(rest.substr(1), end);
      if (dash || (braces == 0 && absl::StartsWith(rest, end))) {
        at_ += dash ? 3 : 2;
        after_ = dash ? After::kStrip : kind == '{' ? After::kKeep : After::kLineFeed;
        tags_.push_back(std::move(tag));
        return absl::OkStatus();
      }
      braces += rest[0] == '{' ? 1 : rest[0] == '}' ? -1 : 0;
      C3PO_RETURN_IF_ERROR(ReadToken(&tag.tokens));
    }
    return absl::InvalidArgumentError("has a tag without end");
  }

  absl::Status ReadToken(TemplateTokens* tokens) {
    const char c = in_[at_];
    if (absl::ascii_isspace(c)) {
      ++at_;
    } else if (c == '\'' || c == '"') {
      return ReadString(c, tokens);
    } else if (IsNameCharacter(c)) {
      const size_t begin = at_;
      while (at_ < in_.size() && IsNameCharacter(in_[at_])) ++at_;
      tokens->push_back({TemplateToken::Kind::kName, std::string(in_.substr(begin, at_ - begin))});
    } else {
      const bool pair = at_ + 1 < in_.size() && in_[at_ + 1] == '=' && absl::StrContains("=!<>", in_.substr(at_, 1));
      tokens->push_back({TemplateToken::Kind::kOther, std::string(in_.substr(at_, pair ? 2 : 1))});
      at_ += pair ? 2 : 1;
    }
    return absl::OkStatus();
  }

  absl::Status ReadString(char quote, TemplateTokens* tokens) {
    std::string text;
    for (++at_; at_ < in_.size() && in_[at_] != quote; ++at_) {
      if (in_[at_] != '\\' || at_ + 1 == in_.size()) {
        text.push_back(in_[at_]);
        continue;
      }
      const char c = in_[++at_];
      if (!absl::StrContains("nrt\\'\"", absl::string_view(&c, 1))) text.push_back('\\');
      text.push_back(c == 'n' ? '\n' : c == 'r' ? '\r' : c == 't' ? '\t' : c);
    }
    if (at_ == in_.size()) return absl::InvalidArgumentError("has a string without end");
    ++at_;
    tokens->push_back({TemplateToken::Kind::kString, std::move(text)});
    return absl::OkStatus();
  }

  enum class After { kKeep, kLineFeed, kStrip };  // What the last tag takes off the text behind it.

  absl::string_view in_;
  size_t at_ = 0;
  After after_ = After::kKeep;
  std::vector<TemplateTag> tags_;
};

// A blank between two tokens, where words need it.
bool Apart(const TemplateToken& left, const TemplateToken& right) {
  for (const char* word : {"and", "or", "not", "is", "in", "if", "else"}) {
    if (left.Is(word) || right.Is(word)) return true;
  }
  return left.kind == TemplateToken::Kind::kName && right.kind == TemplateToken::Kind::kName;
}

}  // namespace

absl::StatusOr<std::vector<TemplateTag>> ReadTemplateTags(absl::string_view source) { return Lexer(source).Run(); }

TemplateTokens SimplifyTokens(const TemplateTokens& tokens) {
  TemplateTokens result;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const bool attribute = tokens[i].Is(".") && i + 1 < tokens.size() &&
                           tokens[i + 1].kind == TemplateToken::Kind::kName &&
                           !(i + 2 < tokens.size() && tokens[i + 2].Is("("));
    if (attribute) {
      result.push_back({TemplateToken::Kind::kOther, "["});
      result.push_back({TemplateToken::Kind::kString, tokens[++i].text});
      result.push_back({TemplateToken::Kind::kOther, "]"});
      continue;
    }
    const size_t size = result.size();
    if (tokens[i].kind == TemplateToken::Kind::kString && size >= 2 && result[size - 1].Is("+") &&
        result[size - 2].kind == TemplateToken::Kind::kString) {
      result.pop_back();
      result.back().text.append(tokens[i].text);
      continue;
    }
    result.push_back(tokens[i]);
  }
  return result;
}

std::string CanonicalText(const TemplateTokens& tokens) {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0 && Apart(tokens[i - 1], tokens[i])) text.push_back(' ');
    if (tokens[i].kind == TemplateToken::Kind::kString) {
      absl::StrAppend(&text, "'", tokens[i].text, "'");
    } else {
      text.append(tokens[i].text);
    }
  }
  return text;
}

}  // namespace c3po
