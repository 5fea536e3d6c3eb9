#include "index/types/metadata_filter.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "index/base/number_text.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

template <typename... Parts>
absl::Status Invalid(absl::string_view field, const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", parts...));
}

// Validates one filter with all that lies within, counting as it goes.
class FilterCheck {
 public:
  absl::Status Check(absl::string_view field, const MetadataFilter& filter, size_t depth) {
    if (depth > kFilterDepthMax)
      return Invalid(field, "filters lie within each other more than ", kFilterDepthMax, " deep");
    C3PO_RETURN_IF_ERROR(Check(absl::StrCat(field, ".must"), filter.must, depth));
    C3PO_RETURN_IF_ERROR(Check(absl::StrCat(field, ".should"), filter.should, depth));
    return Check(absl::StrCat(field, ".must_not"), filter.must_not, depth);
  }

 private:
  absl::Status Check(absl::string_view list, const std::vector<MetadataCondition>& conditions, size_t depth) {
    for (size_t i = 0; i < conditions.size(); ++i) {
      C3PO_RETURN_IF_ERROR(Check(absl::StrCat(list, "[", i, "]"), conditions[i], depth));
    }
    return absl::OkStatus();
  }

  absl::Status Check(const std::string& field, const MetadataCondition& condition, size_t depth) {
    if (++conditions_ > kFilterConditionsMax) {
      return Invalid(field, "the filter has more than ", kFilterConditionsMax, " conditions");
    }
    std::vector<absl::string_view> set;
    if (condition.equals) set.emplace_back("equals");
    if (!condition.in.empty()) set.emplace_back("in");
    if (condition.range) set.emplace_back("range");
    if (condition.exists) set.emplace_back("exists");
    if (!condition.filter.empty()) set.emplace_back("filter");
    if (set.empty()) return Invalid(field, "sets none of equals, in, range, exists and filter");
    if (set.size() > 1) return Invalid(field, "sets ", absl::StrJoin(set, " and "), ", of which one may be set");
    if (condition.filter.empty() && condition.key.empty())
      return Invalid(absl::StrCat(field, ".key"), "must not be empty");
    if (!condition.filter.empty() && !condition.key.empty()) {
      return Invalid(absl::StrCat(field, ".key"), "must not be set beside filter, whose conditions have their own");
    }
    C3PO_RETURN_IF_ERROR(CheckSizes(field, condition));
    if (condition.range) return CheckRange(absl::StrCat(field, ".range"), *condition.range);
    for (const MetadataFilter& filter : condition.filter) {
      C3PO_RETURN_IF_ERROR(Check(absl::StrCat(field, ".filter"), filter, depth + 1));
    }
    return absl::OkStatus();
  }

  absl::Status CheckSizes(const std::string& field, const MetadataCondition& condition) {
    values_ += condition.in.size();
    if (values_ > kFilterValuesMax) {
      return Invalid(absl::StrCat(field, ".in"), "the filter's lists have more than ", kFilterValuesMax, " values");
    }
    bytes_ += condition.key.size() + (condition.equals ? condition.equals->size() : 0);
    for (const std::string& value : condition.in) bytes_ += value.size();
    if (bytes_ > kFilterBytesMax) {
      return Invalid(field, "the filter's keys and values have more than ", kFilterBytesMax, " bytes");
    }
    return absl::OkStatus();
  }

  static absl::Status CheckRange(const std::string& field, const MetadataRange& range) {
    const std::pair<const char*, const std::optional<double>&> ends[] = {
        {"gt", range.gt}, {"gte", range.gte}, {"lt", range.lt}, {"lte", range.lte}};
    bool any = false;
    for (const auto& [name, end] : ends) {
      if (!end) continue;
      any = true;
      if (!std::isfinite(*end)) return Invalid(absl::StrCat(field, ".", name), NumberText(*end), ", must be finite");
    }
    return any ? absl::OkStatus() : Invalid(field, "sets none of gt, gte, lt and lte");
  }

  size_t conditions_ = 0, values_ = 0, bytes_ = 0;
};

using Metadata = std::map<std::string, std::string>;

bool Holds(const MetadataCondition& condition, const Metadata& metadata) {
  if (!condition.filter.empty()) return Matches(condition.filter.front(), metadata);
  const auto found = metadata.find(condition.key);
  const bool has_key = found != metadata.end();
  if (condition.exists) return has_key == *condition.exists;
  if (!has_key) return false;
  if (condition.equals) return found->second == *condition.equals;
  if (condition.range) {
    const std::optional<double> number = DecimalNumber(found->second);
    return number && condition.range->Holds(*number);
  }
  return std::find(condition.in.begin(), condition.in.end(), found->second) != condition.in.end();
}

std::string Quoted(absl::string_view text) { return absl::StrCat("\"", absl::Utf8SafeCEscape(text), "\""); }

std::string ConditionText(const MetadataCondition& condition) {
  if (!condition.filter.empty()) return absl::StrCat("(", FilterText(condition.filter.front()), ")");
  std::string text = Quoted(condition.key);
  if (condition.equals) absl::StrAppend(&text, "=", Quoted(*condition.equals));
  if (!condition.in.empty()) {
    absl::StrAppend(&text, " in ", absl::StrJoin(condition.in, "|", [](std::string* out, const std::string& value) {
      absl::StrAppend(out, Quoted(value));
    }));
  }
  if (condition.exists) absl::StrAppend(&text, *condition.exists ? " exists" : " is missing");
  if (!condition.range) return text;
  const MetadataRange& range = *condition.range;
  if (range.gt) absl::StrAppend(&text, ">", NumberText(*range.gt));
  if (range.gte) absl::StrAppend(&text, ">=", NumberText(*range.gte));
  if (range.lt) absl::StrAppend(&text, "<", NumberText(*range.lt));
  if (range.lte) absl::StrAppend(&text, "<=", NumberText(*range.lte));
  return text;
}

// Digits from `at` on; returns how many.
size_t SkipDigits(absl::string_view text, size_t& at) {
  const size_t first = at;
  while (at < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[at]))) ++at;
  return at - first;
}

bool IsSign(absl::string_view text, size_t at) { return at < text.size() && (text[at] == '+' || text[at] == '-'); }

}  // namespace

bool MetadataRange::Holds(double number) const {
  return !(gt && !(number > *gt)) && !(gte && !(number >= *gte)) && !(lt && !(number < *lt)) &&
         !(lte && !(number <= *lte));
}

bool MetadataFilter::empty() const { return must.empty() && should.empty() && must_not.empty(); }

bool operator==(const MetadataFilter& a, const MetadataFilter& b) {
  return a.must == b.must && a.should == b.should && a.must_not == b.must_not;
}

bool operator==(const MetadataCondition& a, const MetadataCondition& b) {
  return a.key == b.key && a.equals == b.equals && a.in == b.in && a.range == b.range && a.exists == b.exists &&
         a.filter == b.filter;
}

std::optional<double> DecimalNumber(absl::string_view text) {
  size_t at = IsSign(text, 0) ? 1 : 0;
  size_t digits = SkipDigits(text, at);
  if (at < text.size() && text[at] == '.') digits += SkipDigits(text, ++at);
  if (digits == 0) return std::nullopt;
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    ++at;
    if (IsSign(text, at)) ++at;
    if (SkipDigits(text, at) == 0) return std::nullopt;
  }
  double number = 0;
  if (at != text.size() || !absl::SimpleAtod(text, &number) || !std::isfinite(number)) return std::nullopt;
  return number;
}

absl::Status ValidateFilter(absl::string_view field, const MetadataFilter& filter) {
  return FilterCheck().Check(field, filter, 1);
}

bool Matches(const MetadataFilter& filter, const Metadata& metadata) {
  const auto holds = [&](const MetadataCondition& condition) { return Holds(condition, metadata); };
  return std::all_of(filter.must.begin(), filter.must.end(), holds) &&
         std::none_of(filter.must_not.begin(), filter.must_not.end(), holds) &&
         (filter.should.empty() || std::any_of(filter.should.begin(), filter.should.end(), holds));
}

std::string FilterText(const MetadataFilter& filter) {
  std::vector<std::string> parts;
  const auto add = [&](absl::string_view name, const std::vector<MetadataCondition>& conditions) {
    if (conditions.empty()) return;
    parts.push_back(absl::StrCat(
        name, "[",
        absl::StrJoin(conditions, ", ",
                      [](std::string* out, const auto& each) { absl::StrAppend(out, ConditionText(each)); }),
        "]"));
  };
  add("must", filter.must);
  add("should", filter.should);
  add("must_not", filter.must_not);
  return absl::StrJoin(parts, " ");
}

}  // namespace c3po
