#include "tests/server/metrics/exposition_parser.h"

#include <cctype>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

using LabelMap = std::map<std::string, std::string>;

absl::Status Bad(absl::string_view why, absl::string_view line) {
  return absl::InvalidArgumentError(absl::StrCat(why, ": ", line));
}

bool IsName(absl::string_view name, bool colons) {
  if (name.empty() || std::isdigit(static_cast<unsigned char>(name[0]))) return false;
  for (char c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && !(colons && c == ':')) return false;
  }
  return true;
}

// One label value from after its opening quote; leaves `rest` after the closing one.
absl::StatusOr<std::string> TakeQuoted(absl::string_view& rest, absl::string_view line) {
  std::string value;
  while (!rest.empty()) {
    const char c = rest[0];
    rest.remove_prefix(1);
    if (c == '"') return value;
    if (c != '\\') {
      value += c;
      continue;
    }
    if (rest.empty()) break;
    const char escaped = rest[0];
    rest.remove_prefix(1);
    if (escaped != '\\' && escaped != '"' && escaped != 'n') return Bad("unknown escape", line);
    value += escaped == 'n' ? '\n' : escaped;
  }
  return Bad("label value without end", line);
}

absl::StatusOr<LabelMap> TakeLabels(absl::string_view& rest, absl::string_view line) {
  LabelMap labels;
  if (!absl::StartsWith(rest, "{")) return labels;
  rest.remove_prefix(1);
  while (!absl::StartsWith(rest, "}")) {
    const size_t equals = rest.find("=\"");
    if (equals == absl::string_view::npos) return Bad("label without =\"", line);
    const std::string key(rest.substr(0, equals));
    if (!IsName(key, /*colons=*/false)) return Bad("bad label name", line);
    rest.remove_prefix(equals + 2);
    C3PO_ASSIGN_OR_RETURN(std::string value, TakeQuoted(rest, line));
    if (!labels.emplace(key, value).second) return Bad("label twice", line);
    if (absl::StartsWith(rest, ",")) {
      rest.remove_prefix(1);
    } else if (!absl::StartsWith(rest, "}")) {
      return Bad("no comma between labels", line);
    }
  }
  rest.remove_prefix(1);
  return labels;
}

absl::StatusOr<double> ParseValue(absl::string_view text, absl::string_view line) {
  if (text == "+Inf") return std::numeric_limits<double>::infinity();
  double value = 0;
  if (text.empty() || !absl::SimpleAtod(text, &value) || !std::isfinite(value)) return Bad("bad value", line);
  return value;
}

absl::StatusOr<ExpositionSample> ParseSample(absl::string_view line) {
  ExpositionSample sample;
  absl::string_view rest = line;
  const size_t end = rest.find_first_of("{ ");
  if (end == absl::string_view::npos) return Bad("no value", line);
  sample.name = std::string(rest.substr(0, end));
  if (!IsName(sample.name, /*colons=*/true)) return Bad("bad metric name", line);
  rest.remove_prefix(end);
  C3PO_ASSIGN_OR_RETURN(sample.labels, TakeLabels(rest, line));
  if (!absl::StartsWith(rest, " ")) return Bad("no space before the value", line);
  C3PO_ASSIGN_OR_RETURN(sample.value, ParseValue(rest.substr(1), line));
  return sample;
}

bool BelongsTo(const ExpositionSample& sample, absl::string_view family, absl::string_view type) {
  if (type != "histogram") return sample.name == family;
  for (absl::string_view suffix : {"_bucket", "_sum", "_count"}) {
    if (sample.name == absl::StrCat(family, suffix)) return true;
  }
  return false;
}

absl::Status CheckHistogram(absl::string_view name, const ExpositionFamily& family) {
  struct Parts {
    double last_bound = -std::numeric_limits<double>::infinity();
    double last_count = 0;
    int sums = 0, counts = 0;
    double count = -1;
  };
  std::map<LabelMap, Parts> histograms;
  for (const ExpositionSample& sample : family.samples) {
    LabelMap labels = sample.labels;
    const auto le = labels.find("le");
    const bool bucket = absl::EndsWith(sample.name, "_bucket");
    if (bucket != (le != labels.end())) return Bad("`le` is for buckets, and each has one", sample.name);
    double bound = 0;
    if (bucket) {
      C3PO_ASSIGN_OR_RETURN(bound, ParseValue(le->second, sample.name));
      labels.erase(le);
    }
    Parts& parts = histograms[labels];
    if (bucket) {
      if (bound <= parts.last_bound) return Bad("bounds do not ascend", sample.name);
      if (sample.value < parts.last_count) return Bad("buckets are not cumulative", sample.name);
      parts.last_bound = bound;
      parts.last_count = sample.value;
    } else if (absl::EndsWith(sample.name, "_sum")) {
      ++parts.sums;
    } else {
      ++parts.counts;
      parts.count = sample.value;
    }
  }
  for (const auto& [labels, parts] : histograms) {
    if (parts.sums != 1 || parts.counts != 1) return Bad("one _sum and one _count expected", name);
    if (!std::isinf(parts.last_bound)) return Bad("no +Inf bucket", name);
    if (parts.last_count != parts.count) return Bad("+Inf is not the count", name);
  }
  return absl::OkStatus();
}

absl::Status CheckFamily(absl::string_view name, const ExpositionFamily& family) {
  if (family.samples.empty()) return Bad("family without samples", name);
  std::set<std::pair<std::string, LabelMap>> seen;
  for (const ExpositionSample& sample : family.samples) {
    if (!seen.emplace(sample.name, sample.labels).second) return Bad("series twice", sample.name);
    if (family.type == "counter" && sample.value < 0) return Bad("negative counter", name);
  }
  if (family.type == "histogram") return CheckHistogram(name, family);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Exposition> ParseExposition(absl::string_view text) {
  if (!absl::EndsWith(text, "\n")) return absl::InvalidArgumentError("the last line has no newline");
  text.remove_suffix(1);
  Exposition exposition;
  std::string current;  // The family whose lines are being read.
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::StartsWith(line, "# HELP ")) {
      const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(' ', 3));
      if (parts.size() != 4 || parts[3].empty()) return Bad("HELP without text", line);
      current = parts[2];
      if (!IsName(current, /*colons=*/true)) return Bad("bad family name", line);
      if (!exposition.emplace(current, ExpositionFamily{"", parts[3], {}}).second) return Bad("family twice", line);
    } else if (absl::StartsWith(line, "# TYPE ")) {
      const std::vector<std::string> parts = absl::StrSplit(line, ' ');
      if (parts.size() != 4 || parts[2] != current) return Bad("TYPE does not follow its HELP", line);
      if (parts[3] != "counter" && parts[3] != "gauge" && parts[3] != "histogram") return Bad("bad type", line);
      ExpositionFamily& family = exposition[current];
      if (!family.type.empty() || !family.samples.empty()) return Bad("TYPE out of place", line);
      family.type = parts[3];
    } else {
      C3PO_ASSIGN_OR_RETURN(ExpositionSample sample, ParseSample(line));
      if (current.empty() || exposition[current].type.empty()) return Bad("sample before its TYPE", line);
      ExpositionFamily& family = exposition[current];
      if (!BelongsTo(sample, current, family.type)) return Bad("sample of another family", line);
      family.samples.push_back(std::move(sample));
    }
  }
  for (const auto& [name, family] : exposition) C3PO_RETURN_IF_ERROR(CheckFamily(name, family));
  return exposition;
}

size_t SeriesCount(const Exposition& exposition) {
  size_t count = 0;
  for (const auto& [name, family] : exposition) count += family.samples.size();
  return count;
}

absl::StatusOr<double> SampleValue(const Exposition& exposition, absl::string_view name,
                                   const std::map<std::string, std::string>& labels) {
  for (const auto& [family_name, family] : exposition) {
    for (const ExpositionSample& sample : family.samples) {
      if (sample.name == name && sample.labels == labels) return sample.value;
    }
  }
  return absl::NotFoundError(absl::StrCat("no sample ", name, " with those labels"));
}

}  // namespace c3po
