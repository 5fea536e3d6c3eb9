#include "server/text/regex_translation.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "server/text/code_point_set.h"
#include "server/text/unicode_tables.h"

namespace c3po {
namespace {

// Members of a character class: the property White_Space, and Oniguruma's word characters.
constexpr absl::string_view kSpaceClass =
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}";
constexpr absl::string_view kNotSpaceClass =
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}\\x{200B}-\\x{2027}"
    "\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}";
// Word characters that have none of the categories L, M, Nd, Nl and Pc.
constexpr absl::string_view kOtherWordClass =
    "\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}";
// Those that Oniguruma takes for such outside of classes only.
constexpr absl::string_view kWordClassOutside = "\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";

// A property that PCRE2's tables do not have as Oniguruma's do, as members of a character class.
struct PropertyMembers {
  bool is_whole = false;  // The members are the property; else they are what \\p{name} lacks of it.
  std::string members;
  std::string non_members;  // Of a whole one.
};

// Surrogates are no characters, and PCRE2 takes none as a range's end.
void AppendRange(char32_t first, char32_t last, std::string* members) {
  if (first == 0xD800) first = 0xE000;
  if (last == 0xDFFF) last = 0xD7FF;
  if (first > last) return;
  absl::StrAppendFormat(members, "\\x{%X}", static_cast<uint32_t>(first));
  if (first < last) absl::StrAppendFormat(members, "-\\x{%X}", static_cast<uint32_t>(last));
}

absl::flat_hash_map<std::string, PropertyMembers> ReadProperties() {
  absl::flat_hash_map<std::string, PropertyMembers> properties;
  for (const unicode_tables::RegexProperty* row = unicode_tables::kRegexProperties; row->name != nullptr; ++row) {
    PropertyMembers& property = properties[row->name];
    property.is_whole = row->is_whole;
    char32_t end = 0;
    const CodePointSet characters(row->characters);
    for (const auto& [first, last] : characters.runs()) {
      AppendRange(first, last, &property.members);
      if (first > end) AppendRange(end, first - 1, &property.non_members);
      end = last + 1;
    }
    if (end <= 0x10FFFF) AppendRange(end, 0x10FFFF, &property.non_members);
  }
  return properties;
}

// Null: PCRE2's own is right. `name` in lower case.
const PropertyMembers* FindProperty(const std::string& name) {
  static const auto* const kProperties = new absl::flat_hash_map<std::string, PropertyMembers>(ReadProperties());
  const auto found = kProperties->find(name);
  return found == kProperties->end() ? nullptr : &found->second;
}

// Members of a character class, of a general category in lower case.
std::string CategoryMembers(absl::string_view name) {
  const PropertyMembers* property = FindProperty(std::string(name));
  const std::string pcre2 = absl::StrCat("\\p{", name, "}");
  if (property == nullptr) return pcre2;
  return property->is_whole ? property->members : pcre2 + property->members;
}

std::string WordMembers() {
  std::string members(kOtherWordClass);
  for (const char* category : {"l", "m", "nd", "nl", "pc"}) members += CategoryMembers(category);
  return members;
}

absl::Status Unsupported(absl::string_view construct) {
  return absl::InvalidArgumentError(absl::StrCat("regular expression construct not supported: ", construct));
}

// Rewrites an Oniguruma pattern, one construct at a time, into PCRE2's dialect.
class Translator {
 public:
  explicit Translator(absl::string_view pattern) : in_(pattern) {}

  absl::StatusOr<TranslatedPattern> Run() {
    while (at_ < in_.size()) {
      absl::Status status = in_[at_] == '\\' ? Escape() : in_class_ ? InsideClass() : OutsideClass();
      if (!status.ok()) return status;
    }
    return TranslatedPattern{std::move(out_), looks_behind_};
  }

 private:
  char Peek(size_t ahead) const { return at_ + ahead < in_.size() ? in_[at_ + ahead] : '\0'; }

  void Copy(size_t count) {
    absl::StrAppend(&out_, in_.substr(at_, count));
    at_ += count;
  }

  void Shorthand(absl::string_view members, bool negated) {
    if (in_class_) {
      absl::StrAppend(&out_, members);
    } else {
      absl::StrAppend(&out_, negated ? "[^" : "[", members, "]");
    }
    at_ += 2;
  }

  // \p{...} and \P{...}. Oniguruma's scripts are the property Script, PCRE2's by default Script_Extensions.
  absl::Status Property() {
    const size_t close = Peek(2) == '{' ? in_.find('}', at_) : absl::string_view::npos;
    if (close == absl::string_view::npos) return Unsupported("\\p without braces");
    absl::string_view name = in_.substr(at_ + 3, close - at_ - 3);
    const bool negated = absl::ConsumePrefix(&name, "^") != (Peek(1) == 'P');
    const bool well_formed = !name.empty() && std::all_of(name.begin(), name.end(), absl::ascii_isalnum);
    if (!well_formed) return Unsupported(in_.substr(at_, close + 1 - at_));
    const bool general_category = name.size() <= 2 || absl::EqualsIgnoreCase(name, "any");
    const std::string pcre2 = absl::StrCat("p{", general_category ? "" : "sc:", name, "}");
    const PropertyMembers* property = FindProperty(absl::AsciiStrToLower(name));
    if (property == nullptr) {
      absl::StrAppend(&out_, negated ? "\\P" : "\\p", pcre2.substr(1));
    } else if (!in_class_) {
      absl::StrAppend(&out_, negated ? "[^" : "[", property->is_whole ? "" : "\\" + pcre2, property->members, "]");
    } else if (!negated) {
      absl::StrAppend(&out_, property->is_whole ? "" : "\\" + pcre2, property->members);
    } else if (property->is_whole) {
      absl::StrAppend(&out_, property->non_members);
    } else {
      return Unsupported(absl::StrCat(in_.substr(at_, close + 1 - at_), " in a character class"));
    }
    at_ = close + 1;
    return absl::OkStatus();
  }

  absl::Status CodeUnit() {
    const absl::string_view digits = in_.substr(std::min(at_ + 2, in_.size()), 4);
    if (digits.size() < 4 || !std::all_of(digits.begin(), digits.end(), absl::ascii_isxdigit)) {
      return Unsupported("\\u without four hexadecimal digits");
    }
    absl::StrAppend(&out_, "\\x{", digits, "}");
    at_ += 6;
    return absl::OkStatus();
  }

  absl::Status Escape() {
    switch (const char c = Peek(1)) {
      case 's':
        Shorthand(kSpaceClass, false);
        return absl::OkStatus();
      case 'w':
        Shorthand(in_class_ ? WordMembers() : absl::StrCat(WordMembers(), kWordClassOutside), false);
        return absl::OkStatus();
      case 'd':
        Shorthand(CategoryMembers("nd"), false);
        return absl::OkStatus();
      case 'D':
        if (in_class_) return Unsupported("\\D in a character class");
        Shorthand(CategoryMembers("nd"), true);
        return absl::OkStatus();
      case 'S':
        Shorthand(in_class_ ? kNotSpaceClass : kSpaceClass, true);
        return absl::OkStatus();
      case 'W':
        if (in_class_) return Unsupported("\\W in a character class");
        Shorthand(absl::StrCat(WordMembers(), kWordClassOutside), true);
        return absl::OkStatus();
      case 'v':  // U+000B alone; PCRE2 reads every line break.
        absl::StrAppend(&out_, "\\x{B}");
        at_ += 2;
        return absl::OkStatus();
      case 'p':
      case 'P':
        return Property();
      case 'u':
        return CodeUnit();
      case 'x': {
        const size_t close = Peek(2) == '{' ? in_.find('}', at_) : absl::string_view::npos;
        Copy(close == absl::string_view::npos ? 2 : close + 1 - at_);
        return absl::OkStatus();
      }
      default:
        if (absl::ascii_isalnum(c) && !absl::StrContains("tnrfaeAzZ", absl::string_view(&c, 1))) {
          return Unsupported(absl::StrCat("\\", absl::string_view(&c, 1)));
        }
        if (c == 'A') looks_behind_ = true;
        Copy(2);
        return absl::OkStatus();
    }
  }

  // [:name:] inside a class. The two engines agree on digits only.
  absl::Status PosixClass() {
    const size_t close = in_.find(":]", at_);
    if (close == absl::string_view::npos) return Unsupported("an unfinished [: class");
    const absl::string_view name = in_.substr(at_ + 2, close - at_ - 2);
    const std::pair<absl::string_view, std::string> members[] = {{"digit", CategoryMembers("nd")},
                                                                 {"punct", CategoryMembers("p") + CategoryMembers("s")},
                                                                 {"space", std::string(kSpaceClass)},
                                                                 {"word", WordMembers()}};
    for (const auto& [known, replacement] : members) {
      if (name != known) continue;
      absl::StrAppend(&out_, replacement);
      at_ = close + 2;
      return absl::OkStatus();
    }
    return Unsupported(in_.substr(at_, close + 2 - at_));
  }

  absl::Status InsideClass() {
    if (in_[at_] == '[' && Peek(1) == ':') return PosixClass();
    if (in_[at_] == '[') return Unsupported("a character class inside another");
    if (in_[at_] == '&' && Peek(1) == '&') return Unsupported("&& in a character class");
    if (in_[at_] == ']') in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  // "(?": lookarounds, atomic and plain groups, comments, and i. In Ruby's syntax (?i) takes the alternatives that
  // follow into itself, so it means the same only at the start.
  absl::Status Group() {
    const absl::string_view rest = in_.substr(at_ + 2);
    for (const absl::string_view kind : {":", "=", "!", ">", "#", "<=", "<!"}) {
      if (!absl::StartsWith(rest, kind)) continue;
      if (kind[0] == '<') looks_behind_ = true;
      Copy(2 + kind.size());
      return absl::OkStatus();
    }
    absl::string_view flags = rest;
    const bool off = absl::ConsumePrefix(&flags, "-");
    if (!absl::ConsumePrefix(&flags, "i") || flags.empty() || !(flags[0] == ':' || (flags[0] == ')' && at_ == 0))) {
      return Unsupported(absl::StrCat("(?", rest.substr(0, 1)));
    }
    const std::string body = absl::AsciiStrToLower(flags[0] == ':' ? flags.substr(0, flags.find(')')) : flags);
    for (const absl::string_view folded : {"ss", "st", "ff", "fi", "fl"}) {  // One character, in other cases.
      if (!off && absl::StrContains(body, folded)) {
        return Unsupported(absl::StrCat("\"", folded, "\" where case is ignored"));
      }
    }
    Copy(in_.size() - flags.size() - at_ + 1);
    return absl::OkStatus();
  }

  // "{": a count, unless it is a literal brace.
  absl::Status Count() {
    size_t end = at_ + 1;
    while (end < in_.size() && (absl::ascii_isdigit(in_[end]) || in_[end] == ',')) ++end;
    if (end < in_.size() && in_[end] == '}' && end > at_ + 1) {
      const absl::string_view count = in_.substr(at_ + 1, end - at_ - 1);
      const char next = end + 1 < in_.size() ? in_[end + 1] : '\0';
      if (count[0] == ',') return Unsupported("{,n}");
      if (next == '+') return Unsupported("{n,m}+");
      if (next == '?' && !absl::StrContains(count, ",")) return Unsupported("{n}?");
    }
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status OutsideClass() {
    if (in_[at_] == '[') {
      in_class_ = true;
      Copy(Peek(1) == '^' ? 2 : 1);
      if (Peek(0) == ']') Copy(1);  // A literal bracket when it comes first.
      return absl::OkStatus();
    }
    if (in_[at_] == '(' && Peek(1) == '*') return Unsupported("(*");
    if (in_[at_] == '(' && Peek(1) == '?') return Group();
    if (in_[at_] == '{') return Count();
    if (in_[at_] == '^') looks_behind_ = true;
    Copy(1);
    return absl::OkStatus();
  }

  absl::string_view in_;
  size_t at_ = 0;
  bool in_class_ = false;
  bool looks_behind_ = false;
  std::string out_;
};

}  // namespace

absl::StatusOr<TranslatedPattern> TranslatePattern(absl::string_view pattern) {
  C3PO_ASSIGN_OR_RETURN(TranslatedPattern translated, Translator(pattern).Run());
  // DeepSeek's files cut with this one, which takes quadratic time where spaces end in something else: what fails at
  // the first of a run is tried at each. Where a run's first fails, so do the others; hence only the first is tried,
  // and what follows a match. The matches are those of the pattern as given, which does not look behind.
  if (pattern == "\\s+$") {
    translated.pattern = absl::StrCat("(?:\\G|(?<![", kSpaceClass, "]))", translated.pattern);
  }
  return translated;
}

}  // namespace c3po
