#include "server/text/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/text/utf8.h"

namespace c3po {
namespace {

utf8proc_category_t Category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

bool Between(char32_t c, char32_t first, char32_t last) { return first <= c && c <= last; }

// Decomposes every character, then puts each run of combining marks in canonical order. libutf8proc's own whole-string
// function sorts by insertion, which long runs of marks make quadratic.
absl::StatusOr<std::vector<utf8proc_int32_t>> Decompose(absl::string_view text, int options) {
  std::vector<utf8proc_int32_t> characters;
  characters.reserve(text.size());
  utf8proc_int32_t buffer[64];  // The longest decomposition has 18 characters.
  for (size_t position = 0; position < text.size();) {
    const utf8proc_int32_t c = static_cast<utf8proc_int32_t>(NextCodePoint(text, &position));
    int boundary_class = 0;
    const utf8proc_ssize_t count =
        utf8proc_decompose_char(c, buffer, 64, static_cast<utf8proc_option_t>(options), &boundary_class);
    if (count < 0 || count > 64) return absl::InternalError(absl::StrCat("cannot decompose character ", c));
    characters.insert(characters.end(), buffer, buffer + count);
  }
  const auto combining_class = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (auto run = characters.begin(); run != characters.end();) {
    if (combining_class(*run) == 0) {
      ++run;
      continue;
    }
    const auto end = std::find_if(run, characters.end(), [&](utf8proc_int32_t c) { return combining_class(c) == 0; });
    std::stable_sort(run, end,
                     [&](utf8proc_int32_t a, utf8proc_int32_t b) { return combining_class(a) < combining_class(b); });
    run = end;
  }
  return characters;
}

}  // namespace

bool IsWhiteSpace(char32_t c) {
  return Between(c, 0x9, 0xD) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || Between(c, 0x2000, 0x200A) ||
         c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsNumeric(char32_t c) {
  if (c < 0x80) return Between(c, '0', '9');
  const utf8proc_category_t category = Category(c);
  return category >= UTF8PROC_CATEGORY_ND && category <= UTF8PROC_CATEGORY_NO;
}

bool IsPunctuation(char32_t c) {
  if (c < 0x80) {
    return Between(c, '!', '/') || Between(c, ':', '@') || Between(c, '[', '`') || Between(c, '{', '~');
  }
  const utf8proc_category_t category = Category(c);
  return category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO;
}

bool IsOther(char32_t c) {
  const utf8proc_category_t category = Category(c);
  return category == UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CF || category == UTF8PROC_CATEGORY_CO;
}

bool IsNonspacingMark(char32_t c) { return c >= 0x300 && Category(c) == UTF8PROC_CATEGORY_MN; }

bool IsWordCharacter(char32_t c) {
  switch (Category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:  // Symbols with property Other_Alphabetic, and the two joiners (Join_Control).
      return Between(c, 0x24B6, 0x24E9) || Between(c, 0x1F130, 0x1F149) || Between(c, 0x1F150, 0x1F169) ||
             Between(c, 0x1F170, 0x1F189) || c == 0x200C || c == 0x200D;
  }
}

void AppendLowercase(char32_t c, std::string* text) {
  if (c == 0x130) {  // The one character whose lower case is two: I with dot above.
    text->append("i\xCC\x87");
    return;
  }
  AppendCodePoint(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), text);
}

absl::StatusOr<std::string> NormalizeUnicode(absl::string_view text, NormalizationForm form) {
  if (IsAscii(text)) return std::string(text);
  const bool compatible = form == NormalizationForm::kNfkc || form == NormalizationForm::kNfkd;
  const bool compose = form == NormalizationForm::kNfc || form == NormalizationForm::kNfkc;
  const int compatibility = compatible ? UTF8PROC_COMPAT : 0;
  absl::StatusOr<std::vector<utf8proc_int32_t>> characters =
      Decompose(text, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | compatibility);
  if (!characters.ok()) return characters.status();
  utf8proc_ssize_t count = static_cast<utf8proc_ssize_t>(characters->size());
  if (compose) {
    count = utf8proc_normalize_utf32(characters->data(), count,
                                     static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (count < 0) return absl::InternalError(utf8proc_errmsg(count));
  }
  std::string normalized;
  normalized.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i) AppendCodePoint(static_cast<char32_t>((*characters)[i]), &normalized);
  return normalized;
}

}  // namespace c3po
