#include "server/trace/otlp_environment.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "index/base/status_macros.h"
#include "index/base/utf8.h"

namespace c3po {
namespace {

// False: a percent sign that two digits do not follow.
bool PercentDecode(absl::string_view coded, std::string& text) {
  for (size_t i = 0; i < coded.size(); ++i) {
    if (coded[i] != '%') {
      text.push_back(coded[i]);
      continue;
    }
    const absl::string_view digits = coded.substr(i + 1, 2);
    if (digits.size() < 2 || !absl::ascii_isxdigit(digits[0]) || !absl::ascii_isxdigit(digits[1])) return false;
    text += absl::HexStringToBytes(digits);
    i += 2;
  }
  return true;
}

// As gRPC takes metadata that are text; others end the process.
bool IsMetadata(const std::string& name, const std::string& value) {
  const auto of_name = [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_' || c == '-' || c == '.';
  };
  const auto printable = [](char c) { return c >= ' ' && c <= '~'; };
  return std::all_of(name.begin(), name.end(), of_name) && !absl::EndsWith(name, "-bin") &&
         !absl::StartsWith(name, "grpc-") && std::all_of(value.begin(), value.end(), printable);
}

absl::StatusOr<NamedTexts> Parse(const ReadVariable& read, const char* variable) {
  absl::StatusOr<NamedTexts> texts = ParseNamedTexts(read(variable));
  if (texts.ok()) return texts;
  return absl::InvalidArgumentError(absl::StrCat(variable, ": ", texts.status().message()));
}

}  // namespace

absl::StatusOr<NamedTexts> ParseNamedTexts(absl::string_view list) {
  NamedTexts texts;
  int number = 0;
  for (const absl::string_view entry : absl::StrSplit(list, ',')) {
    ++number;
    if (absl::StripAsciiWhitespace(entry).empty()) continue;
    const size_t equals = entry.find('=');
    const absl::string_view name = absl::StripAsciiWhitespace(entry.substr(0, equals));
    std::string value;
    if (equals == absl::string_view::npos || name.empty() ||
        !PercentDecode(absl::StripAsciiWhitespace(entry.substr(equals + 1)), value)) {
      return absl::InvalidArgumentError(absl::StrCat("entry ", number, " is not name=value, percent-encoded"));
    }
    texts.emplace_back(std::string(name), std::move(value));
  }
  return texts;
}

absl::StatusOr<OtlpEnvironment> ReadOtlpEnvironment(const ReadVariable& read) {
  OtlpEnvironment environment;
  const char* headers = "OTEL_EXPORTER_OTLP_TRACES_HEADERS";
  if (read(headers).empty()) headers = "OTEL_EXPORTER_OTLP_HEADERS";
  C3PO_ASSIGN_OR_RETURN(environment.headers, Parse(read, headers));
  for (size_t i = 0; i < environment.headers.size(); ++i) {
    auto& [name, value] = environment.headers[i];
    absl::AsciiStrToLower(&name);
    if (!IsMetadata(name, value)) {
      return absl::InvalidArgumentError(absl::StrCat(headers, ": header ", i + 1, " cannot be sent over gRPC"));
    }
  }
  const char* resource = "OTEL_RESOURCE_ATTRIBUTES";
  C3PO_ASSIGN_OR_RETURN(NamedTexts attributes, Parse(read, resource));
  for (auto& [name, value] : attributes) {
    if (!IsValidUtf8(name) || !IsValidUtf8(value)) {
      return absl::InvalidArgumentError(absl::StrCat(resource, ": is not UTF-8"));
    }
    if (name == "service.name") {
      environment.service_name = std::move(value);
    } else {
      environment.resource_attributes.emplace_back(std::move(name), std::move(value));
    }
  }
  const std::string name = read("OTEL_SERVICE_NAME");
  if (!IsValidUtf8(name)) return absl::InvalidArgumentError("OTEL_SERVICE_NAME: is not UTF-8");
  if (!name.empty()) environment.service_name = name;
  return environment;
}

}  // namespace c3po
