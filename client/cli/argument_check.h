#ifndef C3PO_CLIENT_CLI_ARGUMENT_CHECK_H_
#define C3PO_CLIENT_CLI_ARGUMENT_CHECK_H_

#include <CLI/CLI.hpp>
#include <cmath>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace c3po {

// For a CLI11 option that is a finite number in [low, high], else a usage error. CLI11's own ranges compare with < and
// >, so that "nan" passes them, and they print an open end with all digits of the largest double.
inline CLI::Validator NumberIn(double low, double high) {
  const std::string range =
      std::isinf(high) ? absl::StrCat("at least ", low) : absl::StrCat("in [", low, ", ", high, "]");
  return CLI::Validator(
      [low, high, range](const std::string& text) -> std::string {
        double value = 0;
        if (absl::SimpleAtod(text, &value) && std::isfinite(value) && value >= low && value <= high) return "";
        return absl::StrCat("\"", text, "\" is not a finite number ", range);
      },
      "");
}

// For a CLI11 option that must not be an empty text, as an unset variable of a script gives; else a usage error.
inline CLI::Validator NotEmpty() {
  return CLI::Validator([](const std::string& text) -> std::string { return text.empty() ? "must not be empty" : ""; },
                        "");
}

}  // namespace c3po

#endif  // C3PO_CLIENT_CLI_ARGUMENT_CHECK_H_
