#include "server/model/config/config_fields.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/json_nesting.h"
#include "index/base/python_json.h"

namespace c3po {
namespace {

using Json = nlohmann::json;

constexpr int kDimensionMax = 1 << 20;  // Far above any model; keeps products of two dimensions in int64.

}  // namespace

struct ConfigFields::Document {
  Json object;
};

ConfigFields::ConfigFields(std::unique_ptr<Document> document, std::string path, std::string prefix)
    : document_(std::move(document)), path_(std::move(path)), prefix_(std::move(prefix)) {}
ConfigFields::~ConfigFields() = default;
ConfigFields::ConfigFields(ConfigFields&&) = default;

absl::StatusOr<ConfigFields> ConfigFields::Parse(absl::string_view text, const std::string& path) {
  if (NestsDeeperThan(text, kJsonLevelsMax)) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": nests deeper than ", kJsonLevelsMax, " levels"));
  }
  auto document = std::make_unique<Document>();
  try {
    document->object = Json::parse(QuoteNonFinite(text));
  } catch (const Json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": malformed JSON: ", error.what()));
  }
  if (!document->object.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  return ConfigFields(std::move(document), path, "");
}

ConfigFields ConfigFields::Object(const std::string& name) {
  auto document = std::make_unique<Document>();
  document->object = Json::object();
  if (Has(name)) {
    if (document_->object[name].is_object()) {
      document->object = document_->object[name];
    } else {
      Fail(name, "must be an object");
    }
  }
  return ConfigFields(std::move(document), path_, absl::StrCat(prefix_, name, "."));
}

bool ConfigFields::Has(const std::string& name) {
  asked_.insert(name);
  return document_->object.contains(name) && !document_->object[name].is_null();
}

bool ConfigFields::IsNull(const std::string& name) const {
  return document_->object.contains(name) && document_->object[name].is_null();
}

bool ConfigFields::Differ(const std::string& name, const std::string& other) {
  return Has(name) && Has(other) && document_->object[name] != document_->object[other];
}

int ConfigFields::Dimension(const std::string& name) {
  if (!Has(name)) return Fail(name, "is missing"), 0;
  const int number = CountOr(name, 0);
  if (number < 1) Fail(name, absl::StrCat("is ", number, ", must be in [1, ", kDimensionMax, "]"));
  return number;
}

int ConfigFields::CountOr(const std::string& name, int fallback) {
  if (!Has(name)) return fallback;
  const Json& value = document_->object[name];
  if (!value.is_number_integer()) return Fail(name, "must be an integer"), 0;
  const auto number = value.get<int64_t>();
  if (number < 0 || number > kDimensionMax) {
    return Fail(name, absl::StrCat("is ", number, ", must be in [0, ", kDimensionMax, "]")), 0;
  }
  return static_cast<int>(number);
}

double ConfigFields::PositiveOr(const std::string& name, double fallback) {
  if (!Has(name)) return fallback;
  const Json& value = document_->object[name];
  if (!value.is_number() || !(value.get<double>() > 0) || !std::isfinite(value.get<double>())) {
    return Fail(name, "must be a positive number"), fallback;
  }
  return value.get<double>();
}

bool ConfigFields::FlagOr(const std::string& name, bool fallback) {
  if (!Has(name)) return fallback;
  if (!document_->object[name].is_boolean()) return Fail(name, "must be true or false"), fallback;
  return document_->object[name].get<bool>();
}

std::string ConfigFields::TextOr(const std::string& name, std::string fallback) {
  if (!Has(name)) return fallback;
  if (!document_->object[name].is_string()) return Fail(name, "must be a string"), fallback;
  return document_->object[name].get<std::string>();
}

std::vector<int> ConfigFields::Counts(const std::string& name) {
  std::vector<int> counts;
  if (!Has(name)) return counts;
  const Json& field = document_->object[name];
  const Json list = field.is_array() ? field : Json::array({field});
  for (const Json& value : list) {
    if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() > INT32_MAX) {
      return Fail(name, "must hold integers that are not negative"), counts;
    }
    counts.push_back(value.get<int>());
  }
  return counts;
}

std::vector<int> ConfigFields::CountList(const std::string& name) {
  if (Has(name) && !document_->object[name].is_array()) return Fail(name, "must be a list"), std::vector<int>();
  return Counts(name);
}

std::vector<std::string> ConfigFields::Texts(const std::string& name) {
  std::vector<std::string> texts;
  if (!Has(name)) return texts;
  const Json& list = document_->object[name];
  if (!list.is_array() || !std::all_of(list.begin(), list.end(), [](const Json& text) { return text.is_string(); })) {
    return Fail(name, "must be a list of strings"), texts;
  }
  for (const Json& text : list) texts.push_back(text.get<std::string>());
  return texts;
}

void ConfigFields::RequireSame(const std::string& name, int value, absl::string_view other) {
  if (!Has(name)) return;
  if (const int stated = Dimension(name); status_.ok() && stated != value) {
    Fail(name, absl::StrCat("is ", stated, ", but ", prefix_, other, " is ", value));
  }
}

void ConfigFields::Fail(absl::string_view name, absl::string_view what) {
  Adopt(absl::InvalidArgumentError(absl::StrCat(path_, ": ", prefix_, name, " ", what)));
}

void ConfigFields::Refuse(absl::string_view name, absl::string_view what) {
  Adopt(absl::UnimplementedError(absl::StrCat(path_, ": ", prefix_, name, " ", what, " is not supported")));
}

void ConfigFields::Require(const std::string& name, const std::vector<std::string>& neutral) {
  if (!Has(name)) return;
  const Json& value = document_->object[name];
  for (const std::string& text : neutral) {
    if (Json::parse(text) == value) return;
  }
  const std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  Refuse(name, text.size() > 60 ? text.substr(0, 60) + "..." : text);
}

std::vector<std::string> ConfigFields::NotAsked() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : document_->object.items()) {
    if (!value.is_null() && asked_.count(name) == 0) names.push_back(name);
  }
  return names;
}

}  // namespace c3po
