#ifndef C3PO_SERVER_CONFIG_SETTING_SOURCES_H_
#define C3PO_SERVER_CONFIG_SETTING_SOURCES_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/config/toml_settings.h"

namespace c3po {

// The settings of a --config file by name, each of them one of `names`. InvalidArgument "--config: PATH: line N: ...":
// what is not TOML, and a key that is none of `names`, with the nearest one. NotFound: the file cannot be read.
absl::StatusOr<std::map<std::string, TomlSetting>> ReadConfigFile(const std::string& path,
                                                                  const std::vector<std::string>& names);

// A value of the file as a field's type. InvalidArgument: it is of another type, or an integer beyond 32 bits.
absl::Status ConvertSetting(const TomlValue& value, std::string& field);
absl::Status ConvertSetting(const TomlValue& value, bool& field);
absl::Status ConvertSetting(const TomlValue& value, int& field);
absl::Status ConvertSetting(const TomlValue& value, double& field);

// "C3PO_AUTH_TOKENS" of "auth-tokens".
std::string EnvironmentName(absl::string_view setting);

// One line for each variable C3PO_... of the environment that none of the settings `names` reads, with the nearest one.
// Those of the client, and those that Kubernetes and Docker make for services, are left out.
std::vector<std::string> UnreadVariables(const std::vector<std::string>& names);

// "; did you mean NAME?", the name after `prefix`; empty: none is near.
std::string NameSuggestion(absl::string_view wrong, const std::vector<std::string>& names,
                           absl::string_view prefix = "");

}  // namespace c3po

#endif  // C3PO_SERVER_CONFIG_SETTING_SOURCES_H_
