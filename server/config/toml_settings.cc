#include "server/config/toml_settings.h"

#include <errno.h>

#include <algorithm>
#include <cstdlib>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "index/base/status_macros.h"
#include "index/base/utf8.h"

namespace c3po {
namespace {

bool IsBareKeyCharacter(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '-'; }
bool IsBlank(char c) { return c == ' ' || c == '\t'; }

void AppendUtf8(uint32_t code, std::string& text) {
  const auto continuation = [&](int shift) { text.push_back(static_cast<char>(0x80 | ((code >> shift) & 0x3f))); };
  if (code < 0x80) {
    text.push_back(static_cast<char>(code));
  } else if (code < 0x800) {
    text.push_back(static_cast<char>(0xc0 | (code >> 6)));
    continuation(0);
  } else if (code < 0x10000) {
    text.push_back(static_cast<char>(0xe0 | (code >> 12)));
    continuation(6);
    continuation(0);
  } else {
    text.push_back(static_cast<char>(0xf0 | (code >> 18)));
    continuation(12);
    continuation(6);
    continuation(0);
  }
}

// Of one base; "1_000" of 10. Nothing: not digits, or an underscore that does not stand between two.
std::optional<std::string> DigitsOf(absl::string_view text, int base) {
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '_') {
      if (i == 0 || i + 1 == text.size() || text[i - 1] == '_') return std::nullopt;
      continue;
    }
    const char c = absl::ascii_tolower(static_cast<unsigned char>(text[i]));
    const int digit = absl::ascii_isdigit(static_cast<unsigned char>(c)) ? c - '0'
                      : c >= 'a' && c <= 'f'                             ? c - 'a' + 10
                                                                         : base;
    if (digit >= base) return std::nullopt;
    digits.push_back(c);
  }
  if (digits.empty()) return std::nullopt;
  return digits;
}

std::optional<int64_t> IntegerOf(absl::string_view word) {
  int base = 10;
  absl::string_view body = word;
  if (absl::StartsWith(word, "0x")) base = 16;
  if (absl::StartsWith(word, "0o")) base = 8;
  if (absl::StartsWith(word, "0b")) base = 2;
  std::string sign;
  if (base != 10) {
    body.remove_prefix(2);
  } else if (!word.empty() && (word.front() == '+' || word.front() == '-')) {
    if (word.front() == '-') sign = "-";
    body.remove_prefix(1);
  }
  const std::optional<std::string> digits = DigitsOf(body, base);
  if (!digits || (base == 10 && digits->size() > 1 && digits->front() == '0')) return std::nullopt;
  const std::string text = sign + *digits;
  errno = 0;
  char* end = nullptr;
  const long long value = std::strtoll(text.c_str(), &end, base);
  if (errno != 0 || *end != '\0') return std::nullopt;
  return value;
}

std::optional<double> FloatOf(absl::string_view word) {
  absl::string_view body = word;
  const bool negative = absl::StartsWith(body, "-");
  if (negative || absl::StartsWith(body, "+")) body.remove_prefix(1);
  std::string text;
  if (body == "inf" || body == "nan") {
    text = std::string(body);
  } else {
    // Digits, then a fraction or an exponent or both, with digits on both sides of the point.
    const size_t exponent = std::min(body.find_first_of("eE"), body.size());
    const absl::string_view mantissa = body.substr(0, exponent);
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(mantissa, absl::MaxSplits('.', 1));
    const auto whole = DigitsOf(parts.first, 10);
    if (!whole || (whole->size() > 1 && whole->front() == '0')) return std::nullopt;
    text = *whole;
    if (absl::StrContains(mantissa, '.')) {
      const auto fraction = DigitsOf(parts.second, 10);
      if (!fraction) return std::nullopt;
      absl::StrAppend(&text, ".", *fraction);
    }
    if (exponent < body.size()) {
      absl::string_view power = body.substr(exponent + 1);
      const bool shrinks = absl::StartsWith(power, "-");
      if (shrinks || absl::StartsWith(power, "+")) power.remove_prefix(1);
      const auto digits = DigitsOf(power, 10);
      if (!digits) return std::nullopt;
      absl::StrAppend(&text, "e", shrinks ? "-" : "", *digits);
    } else if (!absl::StrContains(mantissa, '.')) {
      return std::nullopt;
    }
  }
  double value = 0;
  if (!absl::SimpleAtod(text, &value)) return std::nullopt;
  return negative ? -value : value;
}

// One line of a file, read from left to right.
class Line {
 public:
  Line(absl::string_view text, int number) : rest_(text), number_(number) {}

  bool AtEnd() {
    SkipBlanks();
    return rest_.empty() || rest_.front() == '#';
  }

  absl::StatusOr<TomlSetting> ReadSetting() {
    SkipBlanks();
    if (rest_.front() == '[') return Wrong("a table; settings stand at the top of the file, in none");
    TomlSetting setting;
    setting.line = number_;
    C3PO_ASSIGN_OR_RETURN(setting.key, ReadKey());
    SkipBlanks();
    if (absl::StartsWith(rest_, ".")) return Wrong("a dotted key; settings stand at the top of the file, in no table");
    if (!absl::ConsumePrefix(&rest_, "=")) return Wrong(absl::StrCat(setting.key, ": \"=\" and a value are missing"));
    SkipBlanks();
    C3PO_ASSIGN_OR_RETURN(setting.value, ReadValue(setting.key));
    if (!AtEnd()) return Wrong(absl::StrCat(setting.key, ": \"", rest_, "\" stands behind the value"));
    return setting;
  }

 private:
  absl::Status Wrong(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", number_, ": ", what));
  }

  void SkipBlanks() {
    while (!rest_.empty() && IsBlank(rest_.front())) rest_.remove_prefix(1);
  }

  absl::StatusOr<std::string> ReadKey() {
    if (rest_.front() == '"' || rest_.front() == '\'') return ReadString("the key");
    const size_t end =
        static_cast<size_t>(std::find_if_not(rest_.begin(), rest_.end(), IsBareKeyCharacter) - rest_.begin());
    if (end == 0) return Wrong(absl::StrCat("\"", rest_, "\" is not KEY = VALUE"));
    const std::string key(rest_.substr(0, end));
    rest_.remove_prefix(end);
    return key;
  }

  absl::StatusOr<TomlValue> ReadValue(const std::string& key) {
    if (rest_.empty() || rest_.front() == '#') return Wrong(absl::StrCat(key, ": the value is missing"));
    if (rest_.front() == '[') return Wrong(absl::StrCat(key, ": an array; a setting has one value"));
    if (rest_.front() == '{') return Wrong(absl::StrCat(key, ": an inline table; a setting has one value"));
    if (rest_.front() == '"' || rest_.front() == '\'') {
      C3PO_ASSIGN_OR_RETURN(std::string text, ReadString(key));
      return TomlValue(std::move(text));
    }
    const absl::string_view word = rest_.substr(0, rest_.find_first_of(" \t#"));
    rest_.remove_prefix(word.size());
    if (word == "true" || word == "false") return TomlValue(word == "true");
    if (const auto integer = IntegerOf(word)) return TomlValue(*integer);
    if (const auto number = FloatOf(word)) return TomlValue(*number);
    return Wrong(absl::StrCat(key, ": ", word, " is no number and no truth value; a text stands in quotes: ", key,
                              " = ", TomlQuoted(word)));
  }

  // A basic ("...") or a literal ('...') string. `name` is what it belongs to.
  absl::StatusOr<std::string> ReadString(absl::string_view name) {
    const char quote = rest_.front();
    if (absl::StartsWith(rest_, std::string(3, quote))) {
      return Wrong(absl::StrCat(name, ": a multi-line string; a setting's text is one line"));
    }
    rest_.remove_prefix(1);
    std::string text;
    while (!rest_.empty() && rest_.front() != quote) {
      const char c = rest_.front();
      rest_.remove_prefix(1);
      if (c != '\\' || quote == '\'') {
        text.push_back(c);
        continue;
      }
      C3PO_RETURN_IF_ERROR(ReadEscape(name, text));
    }
    if (!absl::ConsumePrefix(&rest_, std::string(1, quote))) {
      return Wrong(absl::StrCat(name, ": the string has no end; ", std::string(1, quote), " is missing"));
    }
    return text;
  }

  // What follows a backslash.
  absl::Status ReadEscape(absl::string_view name, std::string& text) {
    constexpr absl::string_view kLetters = "btnfr\"\\", kMeanings = "\b\t\n\f\r\"\\";
    const char letter = rest_.empty() ? '\0' : rest_.front();
    if (const size_t at = kLetters.find(letter); at != absl::string_view::npos) {
      rest_.remove_prefix(1);
      text.push_back(kMeanings[at]);
      return absl::OkStatus();
    }
    const size_t digits = letter == 'u' ? 4 : letter == 'U' ? 8 : 0;
    uint32_t code = 0;
    if (digits == 0 || rest_.size() < 1 + digits || !absl::SimpleHexAtoi(rest_.substr(1, digits), &code) ||
        code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) {
      return Wrong(absl::StrCat(name, ": \"\\", rest_.substr(0, 1 + digits), "\" is no escape sequence of TOML"));
    }
    rest_.remove_prefix(1 + digits);
    AppendUtf8(code, text);
    return absl::OkStatus();
  }

  absl::string_view rest_;
  const int number_;
};

}  // namespace

absl::StatusOr<std::vector<TomlSetting>> ParseTomlSettings(absl::string_view text) {
  absl::ConsumePrefix(&text, "\xef\xbb\xbf");  // A byte order mark.
  if (!IsValidUtf8(text)) return absl::InvalidArgumentError("line 1: the file is not UTF-8");
  std::vector<TomlSetting> settings;
  int number = 0;
  for (absl::string_view content : absl::StrSplit(text, '\n')) {
    ++number;
    absl::ConsumeSuffix(&content, "\r");
    Line line(content, number);
    if (line.AtEnd()) continue;
    C3PO_ASSIGN_OR_RETURN(TomlSetting setting, line.ReadSetting());
    for (const TomlSetting& earlier : settings) {
      if (earlier.key != setting.key) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": ", setting.key, " is set again, first on line ", earlier.line));
    }
    settings.push_back(std::move(setting));
  }
  return settings;
}

std::string TomlQuoted(absl::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      quoted += {'\\', c};
    } else if (byte < 0x20 || byte == 0x7f) {
      absl::StrAppend(&quoted, absl::StrFormat("\\u%04x", byte));
    } else {
      quoted.push_back(c);
    }
  }
  return quoted + "\"";
}

}  // namespace c3po
