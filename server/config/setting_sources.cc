#include "server/config/setting_sources.h"

#include <algorithm>
#include <limits>
#include <utility>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "index/base/durable_file.h"
#include "index/base/environment_names.h"
#include "index/base/nearest_name.h"

namespace c3po {
namespace {

constexpr int64_t kConfigFileBytesMax = int64_t{1} << 20;

}  // namespace

absl::StatusOr<std::map<std::string, TomlSetting>> ReadConfigFile(const std::string& path,
                                                                  const std::vector<std::string>& names) {
  std::map<std::string, TomlSetting> settings;
  const absl::StatusOr<std::string> text = ReadWholeFile(path, kConfigFileBytesMax);
  if (!text.ok()) {
    return absl::Status(text.status().code(), absl::StrCat("--config: cannot be read: ", text.status().message()));
  }
  const auto in_file = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("--config: ", path, ": ", what));
  };
  const auto parsed = ParseTomlSettings(*text);
  if (!parsed.ok()) return in_file(parsed.status().message());
  for (const TomlSetting& setting : *parsed) {
    if (std::find(names.begin(), names.end(), setting.key) == names.end()) {
      return in_file(absl::StrCat("line ", setting.line, ": no setting is called \"", setting.key, "\"",
                                  NameSuggestion(setting.key, names)));
    }
    settings.emplace(setting.key, setting);
  }
  return settings;
}

absl::Status ConvertSetting(const TomlValue& value, std::string& field) {
  const auto* text = std::get_if<std::string>(&value);
  if (text == nullptr) return absl::InvalidArgumentError("must be a text in quotes");
  field = *text;
  return absl::OkStatus();
}
absl::Status ConvertSetting(const TomlValue& value, bool& field) {
  const auto* flag = std::get_if<bool>(&value);
  if (flag == nullptr) return absl::InvalidArgumentError("must be true or false");
  field = *flag;
  return absl::OkStatus();
}
absl::Status ConvertSetting(const TomlValue& value, int& field) {
  const auto* integer = std::get_if<int64_t>(&value);
  if (integer == nullptr) return absl::InvalidArgumentError("must be a whole number");
  if (*integer < std::numeric_limits<int>::min() || *integer > std::numeric_limits<int>::max()) {
    return absl::InvalidArgumentError(absl::StrCat("is ", *integer, ", beyond what 32 bits hold"));
  }
  field = static_cast<int>(*integer);
  return absl::OkStatus();
}
absl::Status ConvertSetting(const TomlValue& value, double& field) {
  if (const auto* integer = std::get_if<int64_t>(&value)) {
    field = static_cast<double>(*integer);
    return absl::OkStatus();
  }
  const auto* number = std::get_if<double>(&value);
  if (number == nullptr) return absl::InvalidArgumentError("must be a number");
  field = *number;
  return absl::OkStatus();
}

std::string EnvironmentName(absl::string_view setting) {
  return absl::StrCat("C3PO_", absl::StrReplaceAll(absl::AsciiStrToUpper(setting), {{"-", "_"}}));
}

std::vector<std::string> UnreadVariables(const std::vector<std::string>& names) {
  std::vector<std::string> known = ClientVariables(), warnings;
  known.push_back(EnvironmentName("config"));
  for (const std::string& flag : names) known.push_back(EnvironmentName(flag));
  for (const std::string& name : VariablesSet()) {
    if (std::find(known.begin(), known.end(), name) != known.end()) continue;
    warnings.push_back(absl::StrCat(name, " is set, and no setting reads it", NameSuggestion(name, known)));
  }
  return warnings;
}

std::string NameSuggestion(absl::string_view wrong, const std::vector<std::string>& names, absl::string_view prefix) {
  const std::string nearest = NearestName(wrong, names);
  return nearest.empty() ? "" : absl::StrCat("; did you mean ", prefix, nearest, "?");
}

}  // namespace c3po
