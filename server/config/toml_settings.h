#ifndef C3PO_SERVER_CONFIG_TOML_SETTINGS_H_
#define C3PO_SERVER_CONFIG_TOML_SETTINGS_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

using TomlValue = std::variant<bool, int64_t, double, std::string>;

// One `key = value` of a file.
struct TomlSetting {
  std::string key;
  TomlValue value;
  int line = 0;  // From 1.
};

// Reads the part of TOML 1.0 (toml.io/en/v1.0.0) that a flat list of settings needs: comments; bare and quoted keys;
// basic and literal strings of one line; integers with base and underscores; floats; true and false.
//
// Nothing is passed over. InvalidArgument "line N: ...": what is not TOML (a string without its end, a text without
// quotes, a key that comes twice), and the rest of TOML, named as such: tables, dotted keys, arrays, inline tables,
// dates, multi-line strings. Pure and thread-safe.
absl::StatusOr<std::vector<TomlSetting>> ParseTomlSettings(absl::string_view text);

// `text` as a basic string with its quotes: ParseTomlSettings reads it back.
std::string TomlQuoted(absl::string_view text);

}  // namespace c3po

#endif  // C3PO_SERVER_CONFIG_TOML_SETTINGS_H_
